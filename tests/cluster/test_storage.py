"""Listing, globbing, atomic writes and digests of `cluster.storage` on a local disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import listing, storage


def touch(folder: Path, *names: str) -> None:
    """Write files whose content is their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    uri = str(tmp_path / "sub" / "file")
    storage.write_bytes(uri, b"old")

    def fail() -> None:
        with storage.atomic_output(uri) as handle:
            handle.write(b"half of the n")
            raise RuntimeError("the writer failed")

    with pytest.raises(RuntimeError, match="the writer failed"):
        fail()
    assert storage.read_bytes(uri) == b"old"
    assert [entry.uri for entry in storage.list_files(str(tmp_path))] == [uri]
    assert len(list((tmp_path / "sub").iterdir())) == 1


def test_file_being_written_is_not_listed(tmp_path: Path) -> None:
    with storage.atomic_output(str(tmp_path / "file")) as handle:
        handle.write(b"x")
        assert storage.list_files(str(tmp_path)) == []
    assert len(storage.list_files(str(tmp_path))) == 1


def test_tables_round_trip(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    uri = str(tmp_path / "t.parquet")
    storage.write_table(uri, table)
    assert storage.read_table(uri).equals(table)
    assert storage.read_table(uri, ["b"]).column_names == ["b"]


def test_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match=r"ftp://host/x: cannot open 'ftp://'"):
        storage.resolve("ftp://host/x")


def test_version_changes_with_content(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (before,) = listing.glob(str(tmp_path / "a.mp4"))
    storage.write_bytes(before.uri, b"other")
    (after,) = listing.glob(str(tmp_path / "a.mp4"))
    assert before.version != after.version


@pytest.mark.slow
@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_digests_of_different_sequences_differ(a: list[str], b: list[str]) -> None:
    assert (storage.digest(*a) == storage.digest(*b)) == (a == b)


def test_files_over_a_bound_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert storage.read_bytes(str(tmp_path / "a"), max_bytes=5) == b"12345"
    with pytest.raises(storage.TooLargeError, match=r"a: has 5 bytes; at most 4 are read"):
        storage.read_bytes(str(tmp_path / "a"), max_bytes=4)


def test_json_is_bounded_and_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('{"a": [1.5, null]}')
    assert storage.read_json(str(tmp_path / "good.json")) == {"a": [1.5, None]}
    large = tmp_path / "large.json"
    with large.open("wb") as handle:
        handle.truncate(storage.MAX_JSON_BYTES + 1)
    texts = {"deep.json": "[" * 100_000, "cut.json": '{"a": ', "digits.json": "1" * 5000, "bytes.json": "\udcff"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    for name in (*texts, "large.json"):
        with pytest.raises(ValueError, match=rf"{name}: (is not JSON: |has [\d,]+ bytes)"):
            storage.read_json(str(tmp_path / name))


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b"[1]", b"1" * 5000, b"\xff"], ids=lambda data: str(data[:4]))
def test_odd_metadata_of_a_footer_is_damage(data: bytes) -> None:
    with pytest.raises(storage.DamagedFileError, match=r"a\.parquet: is damaged: the metadata in its footer is not"):
        storage.parse_metadata("a.parquet", pa.schema([], metadata={b"key": data}), b"key")
    assert storage.parse_metadata("a.parquet", pa.schema([], metadata={b"key": b'{"a": 1}'}), b"key") == {"a": 1}
    assert storage.parse_metadata("a.parquet", pa.schema([]), b"key") == {}


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    for size_bytes in (0, 5, (8 << 20) + 3):
        data = bytes(range(256)) * (size_bytes // 256) + b"x" * (size_bytes % 256)
        (tmp_path / "file").write_bytes(data)
        assert storage.file_digest(str(tmp_path / "file")) == storage.digest(data)


def test_remove_of_files_folders_and_missing_paths(tmp_path: Path) -> None:
    touch(tmp_path, "d/a", "f")
    for name in ("d", "f", "never"):
        storage.remove(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["", "s3://", "gs://"])
def test_folders_are_listed_without_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name in ("tables/b/part-0", "tables/b/deep/part-1", "tables/a/x", "tables/file"):
        (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / name).touch()
    root = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr("cluster.stores.filesystem", lambda scheme, bucket: root)
    uri = f"{scheme or f'{tmp_path}/'}bucket/tables"
    assert storage.list_folders(uri) == ["a", "b"]
    assert storage.list_folders(f"{uri}/none") == []
