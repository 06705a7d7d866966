"""Object stores: which URIs name an object of one, and the filesystem of a bucket."""

from __future__ import annotations

import os
import re
from functools import cache

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.unreadable import BUCKET, UnreadableError, unreadable_errors

SCHEMES = ("s3", "gs")

GS_RETRY_S = 30
"""Seconds for which requests to gs:// are repeated. The last wait may end as long after them; Google's own limit is 15
minutes, without a word."""

S3_ATTEMPTS = 8
"""Tries of a request to s3://. Before each of the next ones is a random part of 1, 2, 4, 8, 16, 20 and 20 seconds: 35
seconds in all on average and 71 at most, less than the two minutes after which a lease is void."""
S3_TIMEOUT_S = 60.0
"""Longest wait for bytes of an answer of s3://. By default 3 s, after which slow answers never come to their end."""
S3_CONNECT_TIMEOUT_S = 10.0

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

    Raises `UnreadableError` if that is not possible now, and `ValueError` for a bucket that is not there, or a name
    that no bucket has.
    """
    uri = f"{scheme}://{bucket}"
    options = f"?retry_limit_seconds={GS_RETRY_S}" if scheme == "gs" else ""
    try:
        with unreadable_errors(uri, "; check the bucket's name, the network and AWS_REGION"):
            found = pafs.FileSystem.from_uri(uri + options)[0]
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri}: is no name of a bucket: {error}") from error
    if isinstance(found, pafs.S3FileSystem):
        found = _patient(found.region)
    if not _has_bucket(found, uri, bucket):
        raise ValueError(f"{uri}: there is no such bucket; {BUCKET}")
    return found


def _patient(region: str) -> pafs.S3FileSystem:
    """Return the filesystem of s3:// in a region that tries again with growing waits.

    That of `from_uri` tries 30 times within 6 s, which a store that asks to slow down counts, too.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, address = endpoint.rstrip("/").rpartition("://")
    return pafs.S3FileSystem(
        region=region,
        scheme=scheme or "https",
        endpoint_override=address or None,
        request_timeout=S3_TIMEOUT_S,
        connect_timeout=S3_CONNECT_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
    )


def _has_bucket(found: pafs.FileSystem, uri: str, bucket: str) -> bool:
    """Return whether a bucket is there, or may be: a key that may not ask can still be one that may read."""
    # Not every store says of a file that its bucket is missing: the folder would be empty, and its files not found.
    try:
        with unreadable_errors(uri):
            return bool(found.get_file_info(bucket).type != pafs.FileType.NotFound)
    except UnreadableError as error:
        if error.may_pass_soon:
            raise
        return True
