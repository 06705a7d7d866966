"""Object stores: which URIs name an object of one, and the filesystem of a bucket."""

from __future__ import annotations

import re
from functools import cache

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.unreadable import unreadable_errors

SCHEMES = ("s3", "gs")

GS_RETRY_S = 30
"""Seconds for which requests to gs:// are repeated. The last wait may end as long after them; Google's own limit is 15
minutes, without a word."""

CREDENTIAL_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE,",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}

HIDDEN = "[hidden]"
CREDENTIALS = re.compile(r"([A-Za-z][\w+.-]*:/{1,2})(?:[^\s/@]*@|[^\s/@]*:[^\s@]*@)")
"""The beginning of a URI with credentials. A secret may hold slashes, and a URI that is taken for a path loses one."""


def has_credentials(uri: str) -> bool:
    """Return whether a URI has a user name, a key or a secret before its host or bucket."""
    return CREDENTIALS.match(uri) is not None


def hide_credentials(text: str) -> str:
    """Return a text for people, in which no URI has credentials."""
    return CREDENTIALS.sub(rf"\1{HIDDEN}@", text)


def credentials_message(uri: str) -> str:
    """Return what to do about a URI with credentials, without these."""
    scheme = uri.partition("://")[0]
    return (
        f"{hide_credentials(uri)}: a URI is stored and shown, so it holds no credentials; remove what is before the @, "
        f"and set {CREDENTIAL_VARIABLES.get(scheme, 'environment variables')} instead"
    )


def check_uri(uri: str) -> None:
    """Raise `ValueError` for a URI that no store takes: one of another scheme, without a bucket or with credentials.

    The message does not repeat credentials.
    """
    scheme, _, path = uri.partition("://")
    if has_credentials(uri):
        raise ValueError(credentials_message(uri))
    if scheme in ("http", "https"):
        raise ValueError(f"{uri}: files are not read over {scheme}://; download them, or copy them to s3:// or gs://")
    if scheme not in SCHEMES:
        raise ValueError(f"{uri}: cannot open '{scheme}://'; local paths, s3:// and gs:// are supported")
    if not path.partition("/")[0]:
        raise ValueError(f"{uri}: names no bucket; write {scheme}://bucket/prefix")


@cache
def filesystem(scheme: str, bucket: str) -> pafs.FileSystem:
    """Return the filesystem of a bucket: buckets of Amazon S3 lie in different regions, looked up by their names.

    Raises `UnreadableError` if that is not possible now, and `ValueError` for a name that no bucket has.
    """
    uri = f"{scheme}://{bucket}"
    options = f"?retry_limit_seconds={GS_RETRY_S}" if scheme == "gs" else ""
    try:
        with unreadable_errors(uri, "; check the bucket's name, the network and AWS_REGION"):
            return pafs.FileSystem.from_uri(uri + options)[0]
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: is no name of a bucket: {error}") from error
