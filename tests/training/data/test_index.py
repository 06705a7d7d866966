"""Tests of a data set's index: bytes are where it says, it opens without the shards, and a stale one is refused."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from captioning.encoder import NULL_CAPTION, text_key
from cluster import large_tables, storage
from tests.support.stored import (
    CLIPS,
    ENCODER,
    STILLS,
    dataset_info,
    flip_bit,
    latent_row,
    shard_file,
    shard_path,
    write_dataset,
)
from training.data import manifest, shards
from training.data.dataset import Dataset
from training.data.footer import DamagedError
from training.data.index import SPLITS, index_uri, read_index
from training.data.index_writer import write_index
from training.data.manifest import OTHER_CAPTION, read_manifest
from training.data.manifest_writer import write_manifest
from training.data.verify import verify

COUNTS = {CLIPS: 13, STILLS: 9}


@pytest.fixture
def manifest_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The manifest of shards of several row groups, with an index of several batches."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * 24 * 16 * 2)
    for module in (manifest, large_tables):
        monkeypatch.setattr(module, "ROWS_PER_CHUNK", 5)
    return write_dataset(tmp_path, COUNTS)


def test_bytes_are_where_the_index_says(manifest_uri: str, tmp_path: Path) -> None:
    """Arrow's own reader of Parquet is the reference."""
    index = read_index(manifest_uri)
    stored = {row["uid"]: row for bucket in COUNTS for row in pq.read_table(shard_path(tmp_path, bucket)).to_pylist()}
    texts = {row["key"]: row for row in pq.read_table(tmp_path / "texts/part-0.parquet").to_pylist()}
    rows = [row for split in SPLITS for batch in index.batches[split] for row in batch.to_pylist()]
    assert sorted(row["uid"] for row in rows) == sorted(stored)
    for row in rows:
        data, expected = (tmp_path / row["file"]).read_bytes(), stored[row["uid"]]
        latent, last_frame = expected["latent"], expected["last_frame_latent"] or b""
        assert data[row["latent_start"] :].startswith(latent)
        assert (row["last_frame_start"] is None) == (last_frame == b"")
        assert not last_frame or data[row["last_frame_start"] :].startswith(last_frame)
        assert row["checksum"] == zlib.crc32(latent + last_frame)
        length = int.from_bytes(data[-8:-4], "little") + 8
        assert row["footer_checksum"] == zlib.crc32(data[-length:])
        place = pq.ParquetFile(tmp_path / "texts" / row["text_file"]).read_row_group(row["text_row_group"])
        assert place["key"][row["text_row"]].as_py() == row["text_key"]
        assert row["text_checksum"] == zlib.crc32(texts[row["text_key"]]["embedding"])
    null = index.info.null_text
    assert null is not None
    assert null["text_checksum"] == texts[text_key(NULL_CAPTION, ENCODER.identity)]["checksum"]


def test_the_index_has_the_rows_of_the_manifest(manifest_uri: str) -> None:
    table, info = read_manifest(manifest_uri)
    index = read_index(manifest_uri)
    assert index.dataset == info
    assert index.info.n_texts == 4
    assert len(index.batches["train"]) > 1
    for split in SPLITS:
        expected = [row for row in table.to_pylist() if row["split"] == split]
        found = [row for batch in index.batches[split] for row in batch.to_pylist()]
        shared = set(table.column_names) & set(index.batches["train"][0].schema.names) - {"other_captions"}
        assert [{name: row[name] for name in shared} for row in found] == [
            {name: row[name] for name in shared} for row in expected
        ]


def test_opening_reads_no_shard_and_no_text_table(manifest_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_input = storage.open_input

    def opening(uri: str) -> BinaryIO:
        opened.append(uri)
        return open_input(uri)

    monkeypatch.setattr(storage, "open_input", opening)
    dataset = Dataset.open(manifest_uri, "train")
    assert opened == [manifest_uri]
    written = latent_row(STILLS, 0)
    assert torch.equal(dataset.sample(0).latent, written.latent)
    assert [uri.rpartition("/")[2] for uri in opened] == ["_manifest.parquet", "part-0.parquet"]
    assert "/texts/" in opened[1], "of the shard only its bytes are read"


def test_other_captions_have_their_places(manifest_uri: str) -> None:
    table, info = read_manifest(manifest_uri)
    texts = [{name: row[name] for name in ("caption", "text_key", "n_text")} for row in table.to_pylist()]
    others = [[{"kind": "short", **texts[i - n]} for n in range(1, 1 + i % 3)] for i in range(len(texts))]
    column = table.column_names.index("other_captions")
    write_manifest(
        manifest_uri, table.set_column(column, "other_captions", pa.array(others, pa.list_(OTHER_CAPTION))), info
    )
    batches = [batch for split in SPLITS for batch in read_index(manifest_uri).batches[split]]
    rows = {row["uid"]: row for batch in batches for row in batch.to_pylist()}
    place_of = {row["text_key"]: (row["text_row"], row["text_checksum"]) for row in rows.values()}
    for uid, expected in zip(table["uid"].to_pylist(), others, strict=True):
        found = rows[uid]["other_captions"]
        assert [(one["kind"], one["text_key"], one["n_text"]) for one in found] == [
            ("short", one["text_key"], one["n_text"]) for one in expected
        ]
        assert [(one["text_row"], one["text_checksum"]) for one in found] == [
            place_of[one["text_key"]] for one in expected
        ]
    assert verify(manifest_uri) == []


def test_a_data_set_without_an_index_names_the_command(manifest_uri: str) -> None:
    Path(index_uri(manifest_uri)).unlink()
    with pytest.raises(DamagedError, match=r"index.arrow: is missing.*run `worldloom index`"):
        Dataset.open(manifest_uri, "train")
    (problem,) = verify(manifest_uri)
    assert "is missing" in problem.message
    write_index(manifest_uri)
    assert verify(manifest_uri) == []


def test_an_index_of_another_manifest_or_version_is_refused(manifest_uri: str) -> None:
    table = storage.read_table(manifest_uri)
    uri = index_uri(manifest_uri)
    storage.write_table(manifest_uri, table.slice(1))
    with pytest.raises(DamagedError, match=r"made from another manifest.*run `worldloom index`"):
        Dataset.open(manifest_uri, "train")
    with pa.OSFile(uri, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DamagedError, match=r"was written by another version; run `worldloom index`"):
        Dataset.open(manifest_uri, "train")
    Path(uri).write_bytes(b"cut")
    with pytest.raises(DamagedError, match=r"index.arrow: cannot be read"):
        Dataset.open(manifest_uri, "train")


def test_a_rewritten_shard_is_read_where_it_is_now(manifest_uri: str, tmp_path: Path) -> None:
    for bucket in COUNTS:
        path = shard_path(tmp_path, bucket)
        size = pq.read_metadata(path).row_group(0).num_rows
        pq.write_table(pq.read_table(path, partitioning=None), path, row_group_size=size, compression="zstd")
    dataset = Dataset.open(manifest_uri, "val")
    for number in range(len(dataset)):
        found = dataset.sample(number)
        bucket = CLIPS if found.kind == "video" else STILLS
        assert torch.equal(found.latent, latent_row(bucket, int(found.uid[-4:])).latent)


def test_verify_names_a_shard_that_was_replaced(manifest_uri: str, tmp_path: Path) -> None:
    path = shard_path(tmp_path, STILLS)
    data = path.read_bytes()
    # The same rows with another description: the bytes of latents lie elsewhere or not, and the footer is another.
    info = replace(shards.read_info(str(path)), fingerprint="another")
    shards.write_rows(str(path), pq.read_table(path, partitioning=None).cast(shards.shard_schema(info)), info)
    assert path.read_bytes() != data
    (problem,) = verify(manifest_uri)
    assert problem.file == shard_file(STILLS)
    assert "is another file than the index was made from" in problem.message
    write_index(manifest_uri)
    assert verify(manifest_uri) == []


def test_verify_reports_a_changed_value_of_the_index(manifest_uri: str) -> None:
    path = Path(index_uri(manifest_uri))
    flip_bit(path, path.read_bytes().index(b"a longer caption of six words"))
    (problem,) = verify(manifest_uri)
    assert problem.file == str(path)
    assert "differs from the manifest in caption" in problem.message


def test_a_row_without_a_place_is_read_by_its_footer(manifest_uri: str, tmp_path: Path) -> None:
    path = shard_path(tmp_path, STILLS)
    aside = path.rename(path.with_suffix(".away"))
    write_index(manifest_uri)
    dataset = Dataset.open(manifest_uri, "train")
    with pytest.raises(DamagedError, match="cannot be opened"):
        dataset.sample(0)
    aside.rename(path)
    assert torch.equal(dataset.sample(0).latent, latent_row(STILLS, 0).latent)
    assert dataset_info() == dataset.info
