"""Tests of shards: every bit is read back, in the layout measured to be fast, and unfit rows are refused."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster import stores
from tests.support.stored import AUTOENCODER, CLIPS, STILLS, bytes_of, latent_row, shard_info, write_dataset
from training.data import byte_ranges, footer, shards
from training.data.buckets import Bucket
from training.data.footer import DamagedError
from training.data.shard_reader import RowReference, ShardReader
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import SCALAR_SCHEMA, read_index, read_info


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, list[LatentRow]]:
    rows = [latent_row(CLIPS, number) for number in range(7)]
    path = tmp_path / f"bucket={CLIPS.name}" / "part-0.parquet"
    write_shard(str(path), rows, shard_info(CLIPS))
    return path, rows


def row_of_bits(bucket: Bucket, bits: NDArray[np.int16], uid: str = "a") -> LatentRow:
    """Return a row whose latents have these bits."""
    channels, frames, height, width = shard_info(bucket).latent_shape
    n = channels * height * width
    values = torch.from_numpy(bits).view(torch.bfloat16)
    latent = values[: n * frames].reshape(channels, frames, height, width)
    last_frame = values[n * frames :].reshape(channels, 1, height, width) if bucket.frames > 1 else None
    return replace(latent_row(bucket, 0, uid), latent=latent, last_frame_latent=last_frame)


@pytest.mark.slow
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), bucket=st.sampled_from([CLIPS, STILLS]), n_rows=st.integers(1, 5))
def test_every_bit_of_every_finite_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, bucket: Bucket, n_rows: int
) -> None:
    uri = str(tmp_path_factory.mktemp("bits") / "part.parquet")
    rng = np.random.default_rng(seed)
    shape = shard_info(bucket).latent_shape
    size = int(np.prod(shape)) + shape[0] * shape[2] * shape[3] * (bucket.frames > 1)
    bits = rng.integers(-(2**15), 2**15, (n_rows, size)).astype(np.int16)
    bits[(bits & 0x7F80) == 0x7F80] &= 0x007F  # infinities and NaNs, whose exponent is all ones
    rows = [row_of_bits(bucket, bits[number], f"uid-{number}") for number in range(n_rows)]
    write_shard(uri, rows, shard_info(bucket))
    reader = ShardReader(str(Path(uri).parent))
    for stored, row in zip(read_index(uri).to_pylist(), rows, strict=True):
        found = reader.read(*RowReference("part.parquet", stored["row_group"], stored["row"]))
        assert bytes_of(found.latent) == bytes_of(row.latent)
        assert (found.last_frame_latent is None) == (row.last_frame_latent is None)
        if found.last_frame_latent is not None and row.last_frame_latent is not None:
            assert bytes_of(found.last_frame_latent) == bytes_of(row.last_frame_latent)
        assert found.checksum == stored["checksum"]


def test_the_index_has_every_scalar_and_no_latent(clips: tuple[Path, list[LatentRow]]) -> None:
    path, rows = clips
    index = read_index(str(path))
    assert index.column_names == [*SCALAR_SCHEMA.names, "row_group", "row"]
    for stored, row in zip(index.to_pylist(), rows, strict=True):
        assert stored["uid"] == row.uid
        assert (stored["start_pts"], stored["end_pts"], stored["time_base_num"], stored["time_base_den"]) == (
            row.start_pts,
            row.end_pts,
            1,
            512,
        )
        assert tuple(stored[f"crop_{side}"] for side in ("x0", "y0", "x1", "y1")) == row.crop
        assert stored["n_tokens"] == 3 * 2 * 4
        assert row.last_frame_latent is not None
        assert stored["checksum"] == zlib.crc32(bytes_of(row.latent) + bytes_of(row.last_frame_latent))


def test_the_description_is_read_back(clips: tuple[Path, list[LatentRow]]) -> None:
    info = read_info(str(clips[0]))
    assert info == shard_info(CLIPS)
    assert info.latent_shape == AUTOENCODER.latent_shape(CLIPS.frames, CLIPS.height, CLIPS.width)
    assert info.pixel_range == "[-1,1]"
    assert len(info.latent_std) == 2 * info.channels


@pytest.mark.slow
def test_the_layout_is_the_one_measured_to_be_fast(tmp_path: Path) -> None:
    """Uncompressed, plain, statistics on scalars only, row groups of 1 to 4 MB, fixed-size binary."""
    bucket = Bucket(256, 256, 17, 8.0)
    channels, frames, height, width = shard_info(bucket).latent_shape
    rows = [
        replace(
            latent_row(CLIPS, 0, f"u{number}"),
            latent=torch.zeros(channels, frames, height, width, dtype=torch.bfloat16),
            last_frame_latent=torch.zeros(channels, 1, height, width, dtype=torch.bfloat16),
        )
        for number in range(40)
    ]
    path = tmp_path / "part.parquet"
    write_shard(str(path), rows, shard_info(bucket))
    meta = pq.ParquetFile(path).metadata
    sizes = [meta.row_group(number).total_byte_size for number in range(meta.num_row_groups)]
    assert all(2**20 <= size <= 4 * 2**20 for size in sizes[:-1])
    assert [meta.row_group(number).num_rows for number in range(meta.num_row_groups)] == [10, 10, 10, 10]
    for index in range(meta.num_columns):
        column = meta.row_group(0).column(index)
        assert column.compression == "UNCOMPRESSED"
        assert not any("DICTIONARY" in encoding for encoding in column.encodings)
        assert column.is_stats_set == (column.path_in_schema not in ("latent", "last_frame_latent"))
    assert pq.read_schema(path).field("latent").type == pa.binary(2 * channels * frames * height * width)


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 256, 432, 512, 1088])
def test_row_groups_of_images_have_1_to_4_megabytes(tmp_path: Path, side: int) -> None:
    """An image has no last-frame latent, so none is counted."""
    bucket = Bucket(side, side, 1, 8.0)
    blank = replace(latent_row(STILLS, 0), latent=torch.zeros(shard_info(bucket).latent_shape, dtype=torch.bfloat16))
    n_rows = 3 * 2**20 // shard_info(bucket).latent_bytes
    write_shard(
        str(tmp_path / "part.parquet"),
        [replace(blank, uid=str(number)) for number in range(n_rows)],
        shard_info(bucket),
    )
    meta = pq.ParquetFile(tmp_path / "part.parquet").metadata
    assert 2**20 <= meta.row_group(0).total_byte_size <= 4 * 2**20


def test_a_large_row_is_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 10)
    write_shard(str(tmp_path / "a.parquet"), [latent_row(CLIPS, number) for number in range(3)], shard_info(CLIPS))
    index = read_index(str(tmp_path / "a.parquet"))
    assert index["row_group"].to_pylist() == [0, 1, 2]
    assert index["row"].to_pylist() == [0, 0, 0]
    reader = ShardReader(str(tmp_path))
    assert torch.equal(reader.read("a.parquet", 2, 0).latent, latent_row(CLIPS, 2).latent)


def test_the_same_rows_give_the_same_bytes(clips: tuple[Path, list[LatentRow]], tmp_path: Path) -> None:
    write_shard(str(tmp_path / "again.parquet"), clips[1], shard_info(CLIPS))
    assert (tmp_path / "again.parquet").read_bytes() == clips[0].read_bytes()


def test_many_threads_read_the_right_rows(clips: tuple[Path, list[LatentRow]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The row groups and the limit of open files are so small that files open and close all the time."""
    monkeypatch.setattr(byte_ranges, "MAX_OPEN_FILES", 1)
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 10)
    path, rows = clips
    for name in ("x.parquet", "y.parquet"):
        write_shard(str(path.with_name(name)), rows, shard_info(CLIPS))
    reader = ShardReader(str(path.parent))
    wanted = [(name, number) for number in range(7) for name in ("x.parquet", "y.parquet")] * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda item: reader.read(item[0], item[1], 0).latent, wanted))
    assert all(torch.equal(latent, rows[number].latent) for latent, (_, number) in zip(found, wanted, strict=True))


def test_writing_to_a_latent_changes_no_later_read(clips: tuple[Path, list[LatentRow]]) -> None:
    reader = ShardReader(str(clips[0].parent))
    reader.read(clips[0].name, 0, 0).latent.zero_()
    assert torch.equal(reader.read(clips[0].name, 0, 0).latent, clips[1][0].latent)


def test_shards_are_written_to_and_read_from_object_stores(
    clips: tuple[Path, list[LatentRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system in memory stands for an object store; everything goes through `cluster.storage`."""
    memory = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(pytest.importorskip("fsspec").filesystem("memory")))
    monkeypatch.setattr(stores, "filesystem", lambda scheme, bucket: memory)
    write_shard("s3://bucket/latents/part.parquet", clips[1], shard_info(CLIPS))
    reader = ShardReader("s3://bucket")
    assert read_info("s3://bucket/latents/part.parquet") == shard_info(CLIPS)
    assert all(
        torch.equal(reader.read("latents/part.parquet", 0, number).latent, row.latent)
        for number, row in enumerate(clips[1])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": torch.zeros(16, 3, 2, 4)}, r"bad: latent is torch.float32 .*bfloat16 \[16, 3, 2, 4\]"),
        ({"latent": torch.zeros(16, 2, 2, 4, dtype=torch.bfloat16)}, r"latent is torch.bfloat16 \[16, 2, 2, 4\]"),
        ({"latent": torch.full((16, 3, 2, 4), torch.nan, dtype=torch.bfloat16)}, "not finite"),
        ({"last_frame_latent": None}, "an image has no last_frame_latent and a video has one"),
        ({"last_frame_latent": torch.zeros(16, 3, 2, 4, dtype=torch.bfloat16)}, "last_frame_latent is"),
    ],
)
def test_unfit_rows_are_refused_and_leave_no_file(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(str(tmp_path / "a.parquet"), [replace(latent_row(CLIPS, 0, "bad"), **change)], shard_info(CLIPS))
    assert list(tmp_path.iterdir()) == []


def test_a_latent_of_any_strides_is_stored_in_order(tmp_path: Path) -> None:
    row = latent_row(CLIPS, 1)
    strided = row.latent.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    write_shard(str(tmp_path / "a.parquet"), [replace(row, latent=strided)], shard_info(CLIPS))
    assert torch.equal(ShardReader(str(tmp_path)).read("a.parquet", 0, 0).latent, row.latent)


def test_files_other_than_shards_are_refused(
    tmp_path: Path, clips: tuple[Path, list[LatentRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    (tmp_path / "cut.parquet").write_bytes(clips[0].read_bytes()[:-100])
    manifest = write_dataset(tmp_path / "set", {CLIPS: 2})
    monkeypatch.setattr(footer, "VERSION", 2)
    write_shard(str(tmp_path / "newer.parquet"), clips[1], shard_info(CLIPS))
    monkeypatch.undo()
    for file, message in [
        ("foreign.parquet", "foreign.parquet: its footer has no description"),
        ("cut.parquet", "cut.parquet: cannot be opened"),
        ("absent.parquet", "absent.parquet: cannot be opened"),
        ("newer.parquet", "newer.parquet: has format version 2, and this program reads version 1"),
        (str(Path(manifest).relative_to(tmp_path)), "is a file of manifest, not of latents"),
    ]:
        with pytest.raises(DamagedError, match=message):
            read_info(str(tmp_path / file))
        with pytest.raises(DamagedError, match=message):
            ShardReader(str(tmp_path)).info(file)


def test_missing_rows_are_refused(clips: tuple[Path, list[LatentRow]]) -> None:
    reader = ShardReader(str(clips[0].parent))
    with pytest.raises(DamagedError, match=r"part-0.parquet: no row group 9; it has 1"):
        reader.read(clips[0].name, 9, 0)
    with pytest.raises(DamagedError, match=r"part-0.parquet: row group 0 has no row 7; it has 7"):
        reader.read(clips[0].name, 0, 7)
