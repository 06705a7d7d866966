"""Reading of latents of any row of any shard by its footer, whatever program wrote the file."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from cluster import storage
from training.data.byte_ranges import ByteRanges
from training.data.footer import DamagedError
from training.data.latent_reader import LatentReader, StoredLatents
from training.data.layout import Layout
from training.data.row_groups import RowGroups
from training.data.shard_footer import ShardFooter, read_shard_footer
from training.data.shards import BYTES_PER_VALUE, ShardInfo

# Latents are [C, t, h, w].

READER_THREADS = 4
"""Threads that read ahead."""

LOG = logging.getLogger(__name__)


class RowReference(NamedTuple):
    """The row of a shard where a sample is stored, as the manifest names it."""

    file: str
    """Path of the shard, relative to the root of the tables."""
    row_group: int
    row: int
    """Row number within the row group."""


class ShardReader:
    """A reader of any row of any shard below a root, local or remote, from any thread.

    Files stay open, and a footer is read once. Every method raises `DamagedError`, naming the file, if something cannot
    be read. The caller has the checksums of the manifest and must compare them.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._shards: dict[str, _Shard] = {}
        self._ranges = ByteRanges()
        self._groups = RowGroups(["latent", "last_frame_latent"])

    def info(self, file: str) -> ShardInfo:
        """Return the description of a shard; `file` is relative to the root."""
        return self._shard(file).info

    def read(self, file: str, row_group: int, row: int) -> StoredLatents:
        """Return the latents of one sample."""
        return self._shard(file).read(row_group, row, 1)[0]

    def read_many(
        self, references: Iterable[RowReference], threads: int = READER_THREADS
    ) -> Iterator[StoredLatents | DamagedError]:
        """Yield samples in the order of their references; threads read ahead and compute checksums.

        Rows that follow each other in a row group are read together. An error is yielded in place of its sample, so
        that other samples are still read.
        """
        ahead: deque[Future[list[StoredLatents | DamagedError]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="shards") as pool:
            try:
                for first, count in _runs(references):
                    ahead.append(pool.submit(self._try_run, first, count))
                    if len(ahead) > 2 * threads:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def _try_run(self, first: RowReference, count: int) -> list[StoredLatents | DamagedError]:
        try:
            return [
                sample.with_checksum() for sample in self._shard(first.file).read(first.row_group, first.row, count)
            ]
        except DamagedError as error:
            if count == 1:
                return [error]
        return [
            sample for number in range(count) for sample in self._try_run(first._replace(row=first.row + number), 1)
        ]

    def _shard(self, file: str) -> _Shard:
        # Two threads may both open a shard; both find the same, and one is kept.
        return self._shards.get(file) or self._shards.setdefault(file, self._open(storage.join(self._root, file)))

    def _open(self, uri: str) -> _Shard:
        footer = read_shard_footer(uri)
        if footer.layout is None:
            LOG.warning(
                "%s: is not laid out as `write_shard` does; whole row groups of it are read, which takes longer", uri
            )
            return _RowGroupShard(uri, footer.info, self._groups)
        return _ByteRangeShard(uri, footer, footer.layout, self._ranges)


class _ByteRangeShard:
    """A shard as `write_shard` lays it out, of which exactly the bytes of each row are read."""

    def __init__(self, uri: str, footer: ShardFooter, layout: Layout, ranges: ByteRanges) -> None:
        self.info = footer.info
        self._uri, self._layout = uri, layout
        self._latents = LatentReader.of(footer.info, ranges)

    def read(self, row_group: int, row: int, count: int) -> list[StoredLatents]:
        """Return `count` rows that follow each other."""
        self._layout.check(self._uri, row_group, row + count - 1)
        last_frame = self._layout.offset("last_frame_latent", row_group, row) if self._latents.last_frame_shape else 0
        return self._latents.read(self._uri, self._layout.offset("latent", row_group, row), last_frame, count)


class _RowGroupShard:
    """A shard that another program has rewritten, compressed for instance, which is read as any Parquet file is."""

    def __init__(self, uri: str, info: ShardInfo, groups: RowGroups) -> None:
        self.info = info
        self._uri, self._groups = uri, groups

    def read(self, row_group: int, row: int, count: int) -> list[StoredLatents]:
        """Return `count` rows that follow each other."""
        table = self._groups.read(self._uri, row_group)
        return [self._sample(table, row_group, number) for number in range(row, row + count)]

    def _sample(self, table: pa.Table, row_group: int, row: int) -> StoredLatents:
        if not 0 <= row < len(table):
            raise DamagedError(f"{self._uri}: row group {row_group} has no row {row}; it has {len(table)}")
        latent, last_frame = (table[column][row].as_buffer() for column in ("latent", "last_frame_latent"))
        if latent is None:
            raise DamagedError(f"{self._uri}: row {row} of row group {row_group} has no latent")
        values = self._tensor(latent, self.info.latent_shape)
        if last_frame is None:
            return StoredLatents(values, None, memoryview(latent))
        last_frame_values = self._tensor(last_frame, self.info.last_frame_shape)
        return StoredLatents(values, last_frame_values, memoryview(latent), memoryview(last_frame))

    def _tensor(self, data: pa.Buffer, shape: tuple[int, ...]) -> Tensor:
        if data.size != math.prod(shape) * BYTES_PER_VALUE:
            raise DamagedError(
                f"{self._uri}: it has {data.size} bytes per row, and the shape {list(shape)} of its footer needs "
                f"{math.prod(shape) * BYTES_PER_VALUE}"
            )
        # Copied: Arrow's memory is read-only, and the cache has it too.
        return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(shape)


_Shard = _ByteRangeShard | _RowGroupShard


def _runs(references: Iterable[RowReference]) -> Iterator[tuple[RowReference, int]]:
    """Yield the first reference and the length of each run of rows that follow each other in a row group."""
    first, following, count = None, None, 0
    for reference in references:
        if first is not None and reference == following:
            count += 1
        else:
            if first is not None:
                yield first, count
            first, count = reference, 1
        following = (reference.file, reference.row_group, reference.row + 1)
    if first is not None:
        yield first, count
