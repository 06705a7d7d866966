"""URIs of object stores: which are refused, and that none shows its credentials."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from cluster import storage, stores
from cluster.config import ConfigError, Document, Settings, parse
from cluster.unreadable import UnreadableError

SECRET = "SECRET/with+signs"


@pytest.fixture(autouse=True)
def forget_filesystems() -> None:
    stores.filesystem.cache_clear()


@pytest.mark.parametrize("uri", [f"s3://KEY:{SECRET}@bucket/a.mp4", "s3://KEY@bucket/a", "gs://anonymous@bucket/a"])
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(
        ValueError, match=r"^\w\w://\[hidden\]@bucket/a.*environment|GOOGLE|AWS_ACCESS_KEY_ID"
    ) as raised:
        storage.resolve(uri)
    assert "KEY@" not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_texts_hide_credentials_and_nothing_else() -> None:
    hidden = stores.hide_credentials(f"worldloom run --set out=s3://KEY:{SECRET}@b/x s3://b/a@2x.png http://h:80/a")
    assert hidden == "worldloom run --set out=s3://[hidden]@b/x s3://b/a@2x.png http://h:80/a"
    assert stores.hide_credentials(f"s3:/KEY:{SECRET}@b/x: no such file") == "s3:/[hidden]@b/x: no such file"


class Out(Settings):
    out: int
    parts: tuple[str, ...] = ()


def test_settings_with_credentials_are_refused_first() -> None:
    uri = f"s3://KEY:{SECRET}@bucket"
    with pytest.raises(ConfigError, match=r"^a\.yaml: out: s3://\[hidden\]@bucket: ") as raised:
        parse(Out, Document("a.yaml", {"out": uri, "parts": [uri]}, {}))
    assert str(raised.value).count("[hidden]") == 2
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://host/a.mp4", "files are not read over https://; download them"),
        ("ftp://host/x", r"cannot open 'ftp://'; local paths, s3:// and gs://"),
        ("s3:///a.mp4", "names no bucket; write s3://bucket/prefix"),
    ],
)
def test_other_uris_are_refused_with_a_sentence(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        storage.resolve(uri)


def test_each_bucket_is_opened_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Stores:
        @staticmethod
        def from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
            opened.append(uri)
            if "away" in uri:
                raise OSError("AWS Error NETWORK_CONNECTION during HeadBucket operation")
            if "bad name" in uri:
                raise pa.ArrowInvalid("Cannot parse URI")
            return pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), ""

    for bucket in ("one", "two"):
        (tmp_path / bucket).mkdir()
    monkeypatch.setattr(pafs, "FileSystem", Stores)
    for uri in ("s3://one/a", "s3://two/a", "s3://one/b", "gs://one/a"):
        storage.resolve(uri)
    assert opened == ["s3://one", "s3://two", f"gs://one?retry_limit_seconds={stores.GS_RETRY_S}"]
    with pytest.raises(UnreadableError, match=r"^s3://away: .*; check the bucket's name, the network and AWS_REGION$"):
        storage.resolve("s3://away/a")
    with pytest.raises(ValueError, match=r"^s3://three: there is no such bucket; create the bucket, or check"):
        storage.resolve("s3://three/a")
    with pytest.raises(ValueError, match="is no name of a bucket: Cannot parse URI"):
        storage.resolve("s3://bad name/a")
