"""Tests of reading shards: Arrow's own Parquet reader is the reference, and no flipped bit is read unnoticed."""

from __future__ import annotations

import gc
import logging
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from tests.support.paths import ROOT
from tests.support.stored import CLIPS, STILLS, bytes_of, latent_row, shard_file, shard_info, shard_path, write_dataset
from training.data import byte_ranges, footer, layout, shards
from training.data.buckets import Bucket
from training.data.dataset import Dataset
from training.data.footer import DamagedError
from training.data.latent_reader import StoredLatents
from training.data.manifest import read_manifest
from training.data.shard_reader import RowReference, ShardReader
from training.data.shard_writer import write_shard
from training.data.shards import checksum_of, read_index
from training.data.verify import verify

T = TypeVar("T")
N_ROWS = 7


@pytest.fixture(params=[CLIPS, STILLS], ids=lambda bucket: bucket.name)
def shard(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard of three row groups: 3, 3 and 1 rows."""
    bucket: Bucket = request.param
    rows = [latent_row(bucket, number) for number in range(N_ROWS)]
    row_bytes = sum(2 * values.numel() for values in (rows[0].latent, rows[0].last_frame_latent) if values is not None)
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 3 * row_bytes)
    write_shard(str(tmp_path / "part.parquet"), rows, shard_info(bucket))
    return tmp_path / "part.parquet"


def references_of(path: Path) -> list[RowReference]:
    return [
        RowReference(path.name, row["row_group"], row["row"])
        for row in read_index(str(path)).select(["row_group", "row"]).to_pylist()
    ]


def by_pyarrow(path: Path) -> list[tuple[bytes, bytes | None, int]]:
    """Return latent, last-frame latent and checksum of each row, by Arrow's own Parquet reader."""
    table = pq.read_table(path, partitioning=None)
    return list(zip(*(table[name].to_pylist() for name in ("latent", "last_frame_latent", "checksum")), strict=True))


def as_bytes(sample: StoredLatents | DamagedError) -> tuple[bytes, bytes | None, int]:
    """Return the bytes of both latents and their checksum."""
    assert isinstance(sample, StoredLatents), sample
    last_frame = sample.last_frame_latent
    return bytes_of(sample.latent), None if last_frame is None else bytes_of(last_frame), sample.checksum


@pytest.mark.slow
@settings(max_examples=15)
@given(
    bucket=st.sampled_from([CLIPS, STILLS, Bucket(16, 32, 5, 8.0)]),
    n_rows=st.integers(1, 12),
    group_bytes=st.integers(1, 20_000),
    data=st.data(),
)
def test_any_rows_are_read_as_arrow_reads_them(
    tmp_path_factory: pytest.TempPathFactory, bucket: Bucket, n_rows: int, group_bytes: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("any") / "part.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_BYTES", group_bytes)
        write_shard(str(path), [latent_row(bucket, number) for number in range(n_rows)], shard_info(bucket))
    reader, references, expected = ShardReader(str(path.parent)), references_of(path), by_pyarrow(path)
    order = data.draw(st.lists(st.integers(0, n_rows - 1), max_size=20))
    assert [as_bytes(reader.read(*references[number])) for number in order] == [expected[number] for number in order]
    assert [as_bytes(sample) for sample in reader.read_many([references[number] for number in order])] == [
        expected[number] for number in order
    ]
    assert [as_bytes(sample) for sample in reader.read_many(references)] == expected


def test_written_shards_are_read_by_byte_ranges(
    shard: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Arrow's Parquet reader reads only the footer."""
    expected = by_pyarrow(shard)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    reader = ShardReader(str(shard.parent))
    assert [as_bytes(reader.read(*reference)) for reference in references_of(shard)] == expected
    assert not caplog.records


REWRITTEN: dict[str, dict[str, Any]] = {
    "compressed": {"compression": "zstd", "use_dictionary": False},
    "dictionary": {"compression": "none", "use_dictionary": True},
    "defaults": {},
    "two pages": {"compression": "none", "use_dictionary": False, "data_page_size": 1, "write_batch_size": 2},
    "streams split": {
        "compression": "none",
        "use_dictionary": False,
        "column_encoding": {"latent": "BYTE_STREAM_SPLIT"},
    },
    "statistics": {"compression": "none", "use_dictionary": False, "write_statistics": True},
    "page version 2": {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    "checksums": {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", REWRITTEN.values(), ids=REWRITTEN)
def test_a_rewritten_shard_is_read_with_a_warning(
    shard: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    table = pq.read_table(shard, partitioning=None)
    pq.write_table(table, shard, row_group_size=4, **options)
    reader, expected = ShardReader(str(shard.parent)), by_pyarrow(shard)
    with caplog.at_level(logging.WARNING):
        assert [as_bytes(reader.read(*reference)) for reference in references_of(shard)] == expected
        assert [as_bytes(sample) for sample in reader.read_many(references_of(shard))] == expected
        with pytest.raises(DamagedError, match=r"part.parquet: row group 1 has no row 3; it has 3"):
            reader.read(shard.name, 1, 3)
        with pytest.raises(DamagedError, match=r"part.parquet: no row group 2; it has 2"):
            reader.read(shard.name, 2, 0)
    assert "is not laid out as `write_shard` does" in caplog.text


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("rows_per_page", [1, 2, 50])
def test_only_columns_of_one_page_have_a_layout(
    tmp_path: Path, version: str, optional: bool, rows_per_page: int
) -> None:
    values = [bytes([number]) * 2 for number in range(100)]
    table = pa.table([pa.array(values, pa.binary(2))], pa.schema([pa.field("latent", pa.binary(2), nullable=optional)]))
    options: dict[str, Any] = {
        "compression": "none",
        "use_dictionary": False,
        "write_statistics": False,
        "data_page_version": version,
    }
    pq.write_table(table, tmp_path / "pages", data_page_size=1, write_batch_size=rows_per_page, **options)
    assert layout.locate(pq.read_metadata(tmp_path / "pages"), 0, {"latent": 2}) is None
    pq.write_table(table, tmp_path / "page", **options)
    found = layout.locate(pq.read_metadata(tmp_path / "page"), 0, {"latent": 2})
    assert found is not None
    data = (tmp_path / "page").read_bytes()
    starts = [found.offset("latent", 0, row) for row in range(100)]
    assert [data[start : start + 2] for start in starts] == values


def test_an_error_of_one_sample_affects_no_other(shard: Path) -> None:
    references, expected = references_of(shard), by_pyarrow(shard)
    asked = [
        references[0],
        RowReference(shard.name, 0, 3),
        references[1],
        RowReference("absent.parquet", 0, 0),
        references[2],
        RowReference(shard.name, 9, 0),
        RowReference(shard.name, 0, -1),
    ]
    found = list(ShardReader(str(shard.parent)).read_many(asked))
    assert [as_bytes(found[number]) for number in (0, 2, 4)] == expected[:3]
    messages = [str(found[number]) for number in (1, 3, 5, 6)]
    for message, part in zip(
        messages,
        ["group 0 has no row 3", "absent.parquet: cannot be opened", "no row group 9", "no row -1"],
        strict=True,
    ):
        assert part in message


class CountedFile:
    """An object of a store that records each read, which is one request."""

    requests: list[tuple[int, int]]

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()

    def read_at(self, size: int, offset: int) -> bytes:
        CountedFile.requests.append((size, offset))
        return self._data[offset : offset + size]


def test_neighbouring_rows_are_one_request(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, references = by_pyarrow(shard), references_of(shard)
    reader = ShardReader("s3://bucket")
    open_input = storage.open_input
    monkeypatch.setattr(storage, "open_input", lambda uri: open_input(uri.replace("s3://bucket", str(shard.parent))))
    reader.info(shard.name)
    monkeypatch.setattr(storage, "open_input", lambda uri: CountedFile(shard))
    CountedFile.requests = []
    assert [as_bytes(sample) for sample in reader.read_many(references)] == expected
    assert len(CountedFile.requests) == 3, "one for each row group, last-frame latents along with latents"
    CountedFile.requests = []
    assert as_bytes(reader.read(*references[4])) == expected[4]
    assert len(CountedFile.requests) == 1
    backwards = list(reader.read_many(references[::-1]))
    assert [as_bytes(sample) for sample in backwards] == expected[::-1]
    monkeypatch.setattr("training.data.latent_reader.MAX_GAP_BYTES", -1)
    apart = ShardReader("s3://bucket")
    monkeypatch.setattr(storage, "open_input", lambda uri: open_input(uri.replace("s3://bucket", str(shard.parent))))
    assert [as_bytes(sample) for sample in apart.read_many(references)] == expected


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_reading_can_stop_at_any_row(shard: Path, taken: int) -> None:
    references, expected = references_of(shard) * 50, by_pyarrow(shard)
    remaining = iter(references)
    samples = ShardReader(str(shard.parent)).read_many(remaining, threads=2)
    assert [as_bytes(next(samples)) for _ in range(taken)] == expected[:taken]
    samples.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("shards") for thread in threading.enumerate())
    # Up to 3 rows are read together. Two threads are at most 5 reads ahead of those that were taken.
    assert len(references) - len(list(remaining)) <= (3 * (taken + 5) + 1 if taken else 0)
    assert next(samples, None) is None


def test_short_reads_are_continued(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(
        os,
        "preadv",
        lambda descriptor, targets, offset: preadv(descriptor, [next(each for each in targets if each)[:100]], offset),
    )
    reader = ShardReader(str(shard.parent))
    assert [as_bytes(reader.read(*reference)) for reference in references_of(shard)] == by_pyarrow(shard)


def test_files_that_are_cut_or_fail_are_named(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(str(shard.parent))
    last = references_of(shard)[-1]
    assert as_bytes(reader.read(*last))
    os.truncate(shard, 2000 if shard.stat().st_size > 4000 else 1000)
    with pytest.raises(
        DamagedError, match=r"part.parquet: \d+ bytes at \d+ cannot be read: the file has only \d+ of them"
    ):
        reader.read(*last)

    def broken(*_: object) -> int:
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(DamagedError, match=r"part.parquet: .* Input/output error"):
        reader.read(*last)


@pytest.mark.slow
def test_the_number_of_open_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranges, "MAX_OPEN_FILES", 3)
    for number in range(10):
        write_shard(str(tmp_path / f"{number}.parquet"), [latent_row(STILLS, number)], shard_info(STILLS))
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list a process's open files")

    def n_open() -> int:
        gc.collect()
        return sum(os.path.realpath(each).startswith(str(tmp_path)) for each in descriptors.iterdir())

    gc.freeze()  # else each collection looks through torch too: 33 s in place of 1.3 s on a busy machine
    try:
        reader = ShardReader(str(tmp_path))
        for number in [*range(10), *range(10)]:
            assert torch.equal(reader.read(f"{number}.parquet", 0, 0).latent, latent_row(STILLS, number).latent)
            assert n_open() <= 3
        del reader
        assert n_open() == 0
    finally:
        gc.unfreeze()


@pytest.mark.slow
@given(latent=st.binary(), last_frame=st.binary())
def test_the_checksum_is_that_of_zlib(latent: bytes, last_frame: bytes) -> None:
    assert checksum_of(latent, last_frame) == zlib.crc32(latent + last_frame)
    assert checksum_of(memoryview(latent + last_frame)) == zlib.crc32(latent + last_frame)


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [STILLS, CLIPS], ids=lambda bucket: bucket.name)
def test_a_flipped_bit_gives_an_error_or_another_checksum(tmp_path: Path, bucket: Bucket) -> None:
    rows = [latent_row(bucket, number) for number in range(3)]
    path = tmp_path / "part.parquet"
    write_shard(str(path), rows, shard_info(bucket))
    whole, references, expected = path.read_bytes(), references_of(path), by_pyarrow(path)
    found = {"error": 0, "checksum": 0, "right": 0}
    values = {
        start + at
        for row in expected
        for start in (whole.index(row[0]), whole.index(row[1] or row[0]))
        for at in range(len(row[1] or row[0]))
    }
    for offset in (each for each in range(len(whole)) if each not in values or each % 13 == 0):
        set_byte(path, offset, whole[offset] ^ 1 << offset % 8)
        reader = ShardReader(str(tmp_path))
        for reference, row in zip(references, expected, strict=True):
            read = error_or(lambda reader=reader, reference=reference: reader.read(*reference))
            if isinstance(read, DamagedError):
                assert "part.parquet" in str(read)
                found["error"] += 1
                continue
            sample = as_bytes(read)
            if sample[2] != row[2]:
                found["checksum"] += 1
            else:
                assert sample == row, f"byte {offset}"
                found["right"] += 1
        set_byte(path, offset, whole[offset])
    assert path.read_bytes() == whole
    assert all(found.values()), found


@pytest.mark.slow
@settings(max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), bucket=st.sampled_from([CLIPS, STILLS]))
def test_verify_reports_any_flipped_bit_that_matters(damaged: Path, position: float, bit: int, bucket: Bucket) -> None:
    file = shard_file(bucket)
    whole = (damaged / file).read_bytes()
    data = bytearray(whole)
    data[int(position * len(data))] ^= 1 << bit
    manifest_uri = str(damaged / "manifest-0/_manifest.parquet")
    try:
        (damaged / file).write_bytes(data)
        problems = verify(manifest_uri, n_decoded=0)
        assert all(problem.file == file for problem in problems)
        wrong = {problem.uid for problem in problems}
        for split in ("train", "val"):
            _check_samples(manifest_uri, split, file, wrong)
    finally:
        (damaged / file).write_bytes(whole)


def _check_samples(manifest_uri: str, split: Any, file: str, wrong: set[str | None]) -> None:
    dataset = error_or(lambda: Dataset.open(manifest_uri, split))
    if isinstance(dataset, DamagedError):
        assert file in str(dataset)
        assert wrong == {None}
        return
    for index, row in enumerate(dataset.table.to_pylist()):
        sample = error_or(lambda index=index: dataset.sample(index))
        if isinstance(sample, DamagedError):
            assert file in str(sample)
            assert row["uid"] in str(sample)
            assert wrong & {row["uid"], None}
            continue
        written = latent_row(CLIPS if row["kind"] == "video" else STILLS, int(row["uid"][-4:]))
        assert bytes_of(sample.latent) == bytes_of(written.latent)
        assert (sample.last_frame_latent is None) == (written.last_frame_latent is None)
        if sample.last_frame_latent is not None and written.last_frame_latent is not None:
            assert bytes_of(sample.last_frame_latent) == bytes_of(written.last_frame_latent)


def set_byte(path: Path, offset: int, value: int) -> None:
    """Change one byte of a file in place. Writing the whole file anew takes 5 ms on ext4, most of it to truncate it."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(bytes([value]))


def error_or(call: Callable[[], T]) -> T | DamagedError:
    try:
        return call()
    except DamagedError as error:
        return error


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    write_dataset(folder, {CLIPS: 4, STILLS: 4})
    return folder


def test_a_factor_of_0_in_a_footer_is_damage(tmp_path: Path) -> None:
    manifest_uri = write_dataset(tmp_path, {STILLS: 2})
    path = shard_path(tmp_path, STILLS)
    table = pq.read_table(path, partitioning=None)
    described = table.schema.metadata[footer.METADATA_KEY]
    assert b'"space_factor": 8' in described
    pq.write_table(
        table.replace_schema_metadata(
            {footer.METADATA_KEY: described.replace(b'"space_factor": 8', b'"space_factor": 0')}
        ),
        path,
    )
    (problem,) = verify(manifest_uri)
    assert "its footer is incomplete or damaged" in problem.message
    with pytest.raises(DamagedError, match=r"part-0\.parquet: its footer is incomplete or damaged"):
        Dataset.open(manifest_uri, "train").sample(0)


def test_a_shard_without_row_groups_has_no_rows(tmp_path: Path) -> None:
    manifest_uri = write_dataset(tmp_path, {STILLS: 2})
    path = shard_path(tmp_path, STILLS)
    pq.write_table(pq.read_table(path, partitioning=None).slice(0, 0), path)
    assert [problem.message for problem in verify(manifest_uri)] == ["the shard has no such row"] * 2
    table, _ = read_manifest(manifest_uri)
    with pytest.raises(DamagedError, match="row group 0 has no row 0; it has 0"):
        Dataset.open(manifest_uri, "train").sample(0)
    assert len(table) == 2


def test_the_example_in_the_docs_reads_a_shard(shard: Path) -> None:
    text = (ROOT / "docs" / "formats" / "shards.md").read_text()
    names: dict[str, Any] = {"path": str(shard)}
    exec(text.split("```python\n")[1].split("```")[0], names)
    latents: dict[str, torch.Tensor] = names["latents"]
    expected = dict(zip(read_index(str(shard))["uid"].to_pylist(), by_pyarrow(shard), strict=True))
    assert {uid: bytes_of(latent) for uid, latent in latents.items()} == {uid: row[0] for uid, row in expected.items()}
    assert all(
        tuple(latent.shape) in (shard_info(CLIPS).latent_shape, shard_info(STILLS).latent_shape)
        for latent in latents.values()
    )
