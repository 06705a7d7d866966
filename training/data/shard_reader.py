"""Latents of any row of any shard, without conversion: a row's bytes are read from the file into its tensor."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster import storage
from training.data.byte_ranges import ByteRanges
from training.data.footer import READ_ERRORS, DamagedError
from training.data.layout import Layout, locate
from training.data.row_groups import RowGroups
from training.data.shards import BYTES_PER_VALUE, ShardInfo, checksum_of, parse_shard_info

# Latents are [C, t, h, w]; N neighbouring rows.

READERS = 4
"""Threads that read ahead."""

MAX_LOCAL_GAP_BYTES, MAX_REMOTE_GAP_BYTES = 2**12, 2**18
"""Most bytes between a latent and its tail latent that are read along with them. What an object store takes to begin an answer, some
10 ms, it would also take to send a few hundred kilobytes."""

LOG = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a sample is, as the manifest says."""

    file: str
    """Relative to the tables' root."""
    row_group: int
    row: int
    """Counted within the row group."""


class StoredLatents(NamedTuple):
    """One sample, as its bytes are now. Samples that were read together share an allocation, and no part of it."""

    latent: Tensor
    """bfloat16 `[C, t, h, w]`."""
    tail_latent: Tensor | None
    """bfloat16 `[C, 1, h, w]`; None for an image."""
    checksum: int
    """CRC-32 of the bytes of both; the column `checksum` has it as written."""


class ShardReader:
    """Latents of any row of any shard below a root; from any thread, local or remote. Files stay open, and a footer is read once.

    Every method raises `DamagedError`, naming the file, for what cannot be read. Whether the bytes are those that were written is for the
    caller to check, who has the checksum in the manifest.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._shards: dict[str, _Shard] = {}
        self._ranges = ByteRanges()
        self._groups = RowGroups(["latent", "tail_latent"])

    def info(self, file: str) -> ShardInfo:
        """Footer of a shard; `file` is relative to the root."""
        return self._shard(file).info

    def read(self, file: str, row_group: int, row: int) -> StoredLatents:
        """One sample."""
        return self._read_run(Place(file, row_group, row), 1)[0]

    def read_many(self, places: Iterable[Place], threads: int = READERS) -> Iterator[StoredLatents | DamagedError]:
        """Samples in the order given, read ahead by threads; places that follow each other in a row group are read at once.

        An error is returned in the place of its sample, so that it costs no other one.
        """
        ahead: deque[Future[list[StoredLatents | DamagedError]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="shards") as pool:
            try:
                for first, count in _runs(places):
                    ahead.append(pool.submit(self._try_run, first, count))
                    if len(ahead) > 2 * threads:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def _try_run(self, first: Place, count: int) -> list[StoredLatents | DamagedError]:
        try:
            return [*self._read_run(first, count)]
        except DamagedError as error:
            if count == 1:
                return [error]
        return [sample for number in range(count) for sample in self._try_run(first._replace(row=first.row + number), 1)]

    def _read_run(self, first: Place, count: int) -> list[StoredLatents]:
        shard = self._shard(first.file)
        if shard.layout is None:
            return [self._read_as_parquet(shard, first.row_group, first.row + number) for number in range(count)]
        shard.layout.check(shard.uri, first.row_group, first.row + count - 1)
        latents = torch.empty((count, *shard.info.latent_shape), dtype=torch.bfloat16)
        latent_bytes, latent_at = _bytes_of(latents), shard.offset("latent", first)
        if not shard.has_tails:
            self._ranges.read_into(shard.uri, latent_at, [latent_bytes])
            return [StoredLatents(latent, None, checksum_of(data)) for latent, data in zip(latents, _split(latent_bytes, count), strict=True)]
        tails = torch.empty((count, *shard.info.tail_shape), dtype=torch.bfloat16)
        tail_bytes, tail_at = _bytes_of(tails), shard.offset("tail_latent", first)
        gap = tail_at - latent_at - len(latent_bytes)
        if 0 <= gap <= (MAX_LOCAL_GAP_BYTES if storage.is_local(shard.uri) else MAX_REMOTE_GAP_BYTES):
            self._ranges.read_into(shard.uri, latent_at, [latent_bytes, memoryview(bytearray(gap)), tail_bytes])
        else:
            self._ranges.read_into(shard.uri, latent_at, [latent_bytes])
            self._ranges.read_into(shard.uri, tail_at, [tail_bytes])
        checksums = map(checksum_of, _split(latent_bytes, count), _split(tail_bytes, count))
        return [StoredLatents(*sample) for sample in zip(latents, tails, checksums, strict=True)]

    def _read_as_parquet(self, shard: _Shard, row_group: int, row: int) -> StoredLatents:
        table = self._groups.read(shard.uri, row_group)
        if not 0 <= row < len(table):
            raise DamagedError(f"{shard.uri}: row group {row_group} has no row {row}; it has {len(table)}")
        latent = _value(shard, table, "latent", row, shard.info.latent_shape)
        if latent is None:
            raise DamagedError(f"{shard.uri}: row {row} of row group {row_group} has no latent")
        tail = _value(shard, table, "tail_latent", row, shard.info.tail_shape)
        return StoredLatents(latent, tail, checksum_of(_bytes_of(latent), b"" if tail is None else _bytes_of(tail)))

    def _shard(self, file: str) -> _Shard:
        if file not in self._shards:
            # Two threads may both open it; one is kept, and they are the same.
            self._shards[file] = _open(storage.join(self._root, file))
        return self._shards[file]


@dataclass(frozen=True)
class _Shard:
    uri: str
    info: ShardInfo
    layout: Layout | None
    """None for a file that can only be read as any Parquet file is."""

    @property
    def has_tails(self) -> bool:
        return self.info.bucket.frames > 1

    def offset(self, column: str, first: Place) -> int:
        assert self.layout is not None
        shape = self.info.latent_shape if column == "latent" else self.info.tail_shape
        return int(self.layout.starts[column][first.row_group]) + first.row * math.prod(shape) * BYTES_PER_VALUE


def _open(uri: str) -> _Shard:
    try:
        with storage.open_input(uri) as handle:
            file = pq.ParquetFile(handle)
            schema, metadata = file.schema_arrow, file.metadata
    except READ_ERRORS as error:
        raise DamagedError(f"{uri}: cannot be opened: {error}") from error
    info = parse_shard_info(schema, uri)
    tail_width = math.prod(info.tail_shape) * BYTES_PER_VALUE if info.bucket.frames > 1 else 0
    layout = locate(metadata, {"latent": math.prod(info.latent_shape) * BYTES_PER_VALUE, "tail_latent": tail_width})
    if layout is None:
        LOG.warning("%s: is not laid out as `write_shard` does; it is read row group by row group, which is slower", uri)
    return _Shard(uri, info, layout)


def _runs(places: Iterable[Place]) -> Iterator[tuple[Place, int]]:
    """First place and length of each run of places that follow each other in a row group."""
    first, count = None, 0
    for place in places:
        if first is not None and place == first._replace(row=first.row + count):
            count += 1
            continue
        if first is not None:
            yield first, count
        first, count = place, 1
    if first is not None:
        yield first, count


def _bytes_of(values: Tensor) -> memoryview:
    return values.view(-1).view(torch.uint8).numpy().data


def _split(data: memoryview, count: int) -> Iterator[memoryview]:
    size = len(data) // count
    return (data[start : start + size] for start in range(0, len(data), size))


def _value(shard: _Shard, table: pa.Table, column: str, row: int, shape: tuple[int, ...]) -> Tensor | None:
    value = table[column][row]
    if not value.is_valid:
        return None
    data = bytearray(value.as_buffer())
    if len(data) != math.prod(shape) * BYTES_PER_VALUE:
        raise DamagedError(f"{shard.uri}: its {column} holds {len(data)} bytes a row, which is not the shape {shape} of its footer")
    return torch.frombuffer(data, dtype=torch.bfloat16).reshape(shape)
