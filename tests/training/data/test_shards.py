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

from cluster import storage
from tests.support.stored import AUTOENCODER, CLIPS, STILLS, dataset_info, latent_row, shard_info, write_dataset
from training.data import byte_ranges, footer, shards
from training.data.buckets import Bucket
from training.data.footer import DamagedError
from training.data.shard_reader import ShardReader
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import (
    MANIFEST_SCHEMA,
    SCALAR_SCHEMA,
    read_index,
    read_info,
    read_manifest,
    tables_root,
    write_manifest,
)


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, list[LatentRow]]:
    rows = [latent_row(CLIPS, number) for number in range(7)]
    path = tmp_path / f"bucket={CLIPS.name}" / "part-0.parquet"
    write_shard(str(path), rows, shard_info(CLIPS))
    return path, rows


def random_row(bucket: Bucket, bits: np.ndarray, uid: str = "a") -> LatentRow:
    channels, frames, height, width = shard_info(bucket).latent_shape
    n = channels * height * width
    values = torch.from_numpy(bits.astype(np.int16)).view(torch.bfloat16)
    latent = values[: n * frames].reshape(channels, frames, height, width)
    tail = values[n * frames :].reshape(channels, 1, height, width) if bucket.frames > 1 else None
    return replace(latent_row(bucket, 0, uid), latent=latent, last_frame_latent=tail)


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.int16).numpy()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), bucket=st.sampled_from([CLIPS, STILLS]), n_rows=st.integers(1, 5))
def test_every_bit_of_every_finite_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, bucket: Bucket, n_rows: int
) -> None:
    uri = str(tmp_path_factory.mktemp("bits") / "part.parquet")
    chance = np.random.default_rng(seed)
    shape = shard_info(bucket).latent_shape
    size = int(np.prod(shape)) + shape[0] * shape[2] * shape[3] * (bucket.frames > 1)
    bits = chance.integers(-(2**15), 2**15, (n_rows, size)).astype(np.int16)
    bits[(bits & 0x7F80) == 0x7F80] &= 0x007F  # infinities and NaNs, whose exponent is all ones
    rows = [random_row(bucket, bits[number], f"uid-{number}") for number in range(n_rows)]
    write_shard(uri, rows, shard_info(bucket))
    reader = ShardReader(str(Path(uri).parent))
    for place, row in zip(read_index(uri).to_pylist(), rows, strict=True):
        where = "part.parquet", place["row_group"], place["row"]
        found = reader.read(*where)
        latent, tail, checksum = found.latent, found.last_frame_latent, found.checksum
        assert np.array_equal(bits_of(latent), bits_of(row.latent))
        if row.last_frame_latent is None:
            assert tail is None
        else:
            assert tail is not None
            assert np.array_equal(bits_of(tail), bits_of(row.last_frame_latent))
        assert checksum == place["checksum"]


def test_index_has_every_scalar_and_no_latent(clips: tuple[Path, list[LatentRow]]) -> None:
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
        assert stored["checksum"] == zlib.crc32(bits_of(row.latent).tobytes() + bits_of(row.last_frame_latent).tobytes())


def test_the_footer_comes_back_whole(clips: tuple[Path, list[LatentRow]]) -> None:
    info = read_info(str(clips[0]))
    assert info == shard_info(CLIPS)
    assert info.latent_shape == AUTOENCODER.latent_shape(CLIPS.frames, CLIPS.height, CLIPS.width)
    assert info.pixel_range == "[-1,1]"
    assert len(info.latent_std) == 2 * info.channels


def test_the_layout_is_as_measured_to_be_fast(tmp_path: Path) -> None:
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
    for place in range(meta.num_columns):
        column = meta.row_group(0).column(place)
        assert column.compression == "UNCOMPRESSED"
        assert not any("DICTIONARY" in encoding for encoding in column.encodings)
        assert column.is_stats_set == (column.path_in_schema not in ("latent", "last_frame_latent"))
    assert pq.read_schema(path).field("latent").type == pa.binary(2 * channels * frames * height * width)


@pytest.mark.parametrize("side", [16, 256, 432, 512, 1088])
def test_row_groups_of_images_are_no_smaller(tmp_path: Path, side: int) -> None:
    """An image has no tail latent, so none is counted."""
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


def test_a_row_too_large_for_a_row_group_has_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_many_threads_read_the_same_as_one(
    clips: tuple[Path, list[LatentRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache and a file limit so small that entries come and go all the time."""
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


def test_what_is_read_may_be_written_to_without_changing_what_is_read_next(clips: tuple[Path, list[LatentRow]]) -> None:
    reader = ShardReader(str(clips[0].parent))
    reader.read(clips[0].name, 0, 0).latent.zero_()
    assert torch.equal(reader.read(clips[0].name, 0, 0).latent, clips[1][0].latent)


def test_a_remote_filesystem_is_read_and_written_alike(
    clips: tuple[Path, list[LatentRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system in memory stands for an object store; everything goes through `cluster.storage`."""
    memory = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(pytest.importorskip("fsspec").filesystem("memory")))
    monkeypatch.setattr(
        storage, "_filesystem", lambda scheme: memory if scheme == "memory" else pa.fs.LocalFileSystem()
    )
    write_shard("memory://bucket/latents/part.parquet", clips[1], shard_info(CLIPS))
    reader = ShardReader("memory://bucket")
    assert read_info("memory://bucket/latents/part.parquet") == shard_info(CLIPS)
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
def test_rows_that_do_not_fit_are_refused_and_nothing_is_left(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(str(tmp_path / "a.parquet"), [replace(latent_row(CLIPS, 0, "bad"), **change)], shard_info(CLIPS))
    assert list(tmp_path.iterdir()) == []


def test_a_latent_in_any_memory_layout_is_stored_in_order(tmp_path: Path) -> None:
    row = latent_row(CLIPS, 1)
    strided = row.latent.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    write_shard(str(tmp_path / "a.parquet"), [replace(row, latent=strided)], shard_info(CLIPS))
    assert torch.equal(ShardReader(str(tmp_path)).read("a.parquet", 0, 0).latent, row.latent)


def test_files_that_are_no_shards_are_named(
    tmp_path: Path, clips: tuple[Path, list[LatentRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    (tmp_path / "cut.parquet").write_bytes(clips[0].read_bytes()[:-100])
    manifest = write_dataset(tmp_path / "set", {CLIPS: 2})
    monkeypatch.setattr(footer, "VERSION", 2)
    write_shard(str(tmp_path / "newer.parquet"), clips[1], shard_info(CLIPS))
    monkeypatch.undo()
    for file, message in [
        ("foreign.parquet", "foreign.parquet: its footer holds no description"),
        ("cut.parquet", "cut.parquet: cannot be opened"),
        ("absent.parquet", "absent.parquet: cannot be opened"),
        ("newer.parquet", "newer.parquet: has format version 2, and this program reads version 1"),
        (str(Path(manifest).relative_to(tmp_path)), "is a file of manifest, not of latents"),
    ]:
        with pytest.raises(DamagedError, match=message):
            read_info(str(tmp_path / file))
        with pytest.raises(DamagedError, match=message):
            ShardReader(str(tmp_path)).info(file)


def test_rows_that_are_not_there_are_named(clips: tuple[Path, list[LatentRow]]) -> None:
    reader = ShardReader(str(clips[0].parent))
    with pytest.raises(DamagedError, match=r"part-0.parquet: no row group 9; it has 1"):
        reader.read(clips[0].name, 9, 0)
    with pytest.raises(DamagedError, match=r"part-0.parquet: row group 0 has no row 7; it has 7"):
        reader.read(clips[0].name, 0, 7)


def test_manifest_comes_back_sorted_with_its_description(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {STILLS: 3, CLIPS: 5})
    table, info = read_manifest(uri)
    assert info == dataset_info()
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert table["uid"].to_pylist() == sorted(table["uid"].to_pylist())
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    write_manifest(str(tmp_path / "again"), shuffled, info)
    assert read_manifest(str(tmp_path / "again"))[0].equals(table)


def test_a_manifest_of_an_earlier_version_says_what_to_do(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {CLIPS: 4})
    stored = storage.read_table(uri)
    storage.write_table(uri, stored.drop_columns(["source_width"]))
    with pytest.raises(
        DamagedError, match=r"written by an earlier version, without columns \['source_width'\]; run the recipe again"
    ):
        read_manifest(uri)


def test_manifests_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    table, info = read_manifest(write_dataset(tmp_path, {CLIPS: 4}))
    uri = str(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"lacks columns \['n_text'\]"):
        write_manifest(uri, table.drop_columns(["n_text"]), info)
    with pytest.raises(ValueError, match=r"uid 32x16x9-0001 is there 2 times"):
        write_manifest(uri, pa.concat_tables([table, table.slice(1, 1)]), info)
    for name, value, message in [
        ("split", "holdout", r"split holds \['holdout'\]"),
        ("kind", "gif", r"kind holds \['gif'\]"),
    ]:
        place = table.column_names.index(name)
        with pytest.raises(ValueError, match=message):
            write_manifest(uri, table.set_column(place, name, pa.array([value] * 4)), info)
    nulls = table.set_column(0, pa.field("uid", pa.string()), pa.array(["a", None, "b", "c"]))
    with pytest.raises(ValueError, match=r"columns \['uid'\] have rows without a value"):
        write_manifest(uri, nulls, info)
    assert not Path(uri).exists()


@pytest.mark.parametrize(
    ("manifest", "root", "expected"),
    [
        ("/a/tables/manifest-1/_manifest.parquet", "..", "/a/tables"),
        ("/a/tables/_manifest.parquet", "", "/a/tables"),
        ("/a/tables/_manifest.parquet", ".", "/a/tables"),
        ("s3://bucket/run/tables/manifest-1/_manifest.parquet", "..", "s3://bucket/run/tables"),
        ("/a/x/y/_manifest.parquet", "../../tables", "/a/tables"),
    ],
)
def test_the_tables_root_is_relative_to_the_manifest(manifest: str, root: str, expected: str) -> None:
    assert tables_root(manifest, replace(dataset_info(), tables_root=root)) == expected
