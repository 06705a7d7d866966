"""Reading of latents of any row of any shard, without conversion: a row's bytes go from the file into its tensor."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster import storage
from training.data.byte_ranges import ByteRanges
from training.data.footer import READ_ERRORS, DamagedError
from training.data.layout import Layout, parse_layout
from training.data.row_groups import RowGroups
from training.data.shards import BYTES_PER_VALUE, ShardInfo, checksum_of, parse_shard_info

# Latents are [C, t, h, w].

READER_THREADS = 4
"""Threads that read ahead."""

MAX_GAP_BYTES = 2**18
"""Largest number of bytes between a latent and its last-frame latent that are read along with them from an object
store. The start of an answer takes some 10 ms, in which a few hundred kilobytes would be sent, too."""

LOG = logging.getLogger(__name__)


class RowReference(NamedTuple):
    """The row of a shard where a sample is stored, as the manifest names it."""

    file: str
    """Path of the shard, relative to the root of the tables."""
    row_group: int
    row: int
    """Row number within the row group."""


class StoredLatents:
    """The latents of one sample, and the checksum of the bytes as they were read.

    `latent` is bfloat16 `[C, t, h, w]`, and `last_frame_latent` is `[C, 1, h, w]`, or None for an image. Samples that
    were read together share an allocation, but no bytes of it.
    """

    __slots__ = ("_checksum", "_parts", "last_frame_latent", "latent")

    def __init__(self, latent: Tensor, last_frame_latent: Tensor | None, *parts: memoryview) -> None:
        """Hold the latents; `parts` are their bytes."""
        self.latent, self.last_frame_latent, self._parts = latent, last_frame_latent, parts
        self._checksum: int | None = None

    @property
    def checksum(self) -> int:
        """CRC-32 of the bytes of both latents, which the column `checksum` has as written.

        It is computed on first use, so use it before changing the tensors.
        """
        if self._checksum is None:
            self._checksum = checksum_of(*self._parts)
        return self._checksum

    def with_checksum(self) -> StoredLatents:
        """Compute the checksum and return this object.

        Reading threads call it while the bytes are in the processor's caches, so that the thread that waits need not.
        """
        self._checksum = self.checksum
        return self


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
        try:
            with storage.open_input(uri) as handle:
                parquet = pq.ParquetFile(handle)
                schema, metadata = parquet.schema_arrow, parquet.metadata
                data_end = handle.size() - metadata.serialized_size - 8  # type: ignore[attr-defined]
        except READ_ERRORS as error:
            raise DamagedError(f"{uri}: cannot be opened: {error}") from error
        info = parse_shard_info(schema, uri)
        widths = {"latent": info.latent_bytes, "last_frame_latent": info.last_frame_bytes}
        for name, width in widths.items():
            found = schema.field(name).type if name in schema.names else None
            if found not in (pa.binary(width), pa.binary()):
                raise DamagedError(
                    f"{uri}: its column {name} is {found}, and by its footer it should be {pa.binary(width)}"
                )
        layout = parse_layout(metadata.metadata, uri)
        written_widths = widths if info.bucket.frames > 1 else {**widths, "last_frame_latent": 0}
        if layout is None or layout.data_end != data_end or layout.widths != written_widths:
            LOG.warning(
                "%s: is not laid out as `write_shard` does; whole row groups of it are read, which takes longer", uri
            )
            return _RowGroupShard(uri, info, self._groups)
        return _ByteRangeShard(uri, info, layout, self._ranges)


class _ByteRangeShard:
    """A shard as `write_shard` lays it out, of which exactly the bytes of each row are read."""

    def __init__(self, uri: str, info: ShardInfo, layout: Layout, ranges: ByteRanges) -> None:
        self.info = info
        self._uri, self._layout, self._ranges = uri, layout, ranges
        self._width, self._last_frame_width = layout.widths["latent"], layout.widths["last_frame_latent"]
        self._shape, self._last_frame_shape = info.latent_shape, info.last_frame_shape
        self._is_local = storage.is_local(uri)

    def read(self, row_group: int, row: int, count: int) -> list[StoredLatents]:
        """Return `count` rows that follow each other; from an object store in one request or two."""
        self._layout.check(self._uri, row_group, row + count - 1)
        if self._is_local:
            # A system call costs less than a larger allocation does.
            return [self._read_local(row_group, row + index) for index in range(count)]
        return self._read_range(row_group, row, count)

    def _read_local(self, row_group: int, row: int) -> StoredLatents:
        """Return one row of a local file, as `_read_range` does with fewer calls.

        Threads hold Python's lock for everything but system calls, so each call costs time.
        """
        width, last_frame_width, starts = self._width, self._last_frame_width, self._layout.starts
        # Arrow's allocator keeps memory that other threads free; malloc returns it to the system, and page faults then
        # took a third of the time of reading.
        data = memoryview(pa.allocate_buffer(width + last_frame_width))
        self._ranges.read_into(self._uri, starts["latent"][row_group] + row * width, [data[:width]])
        if last_frame_width:
            start = starts["last_frame_latent"][row_group] + row * last_frame_width
            self._ranges.read_into(self._uri, start, [data[width:]])
        # Sizes one by one, which torch takes in half the time of a tuple.
        latent = torch.frombuffer(data, dtype=torch.bfloat16, count=width // BYTES_PER_VALUE).view(*self._shape)
        if not last_frame_width:
            return StoredLatents(latent, None, data)
        last_frame = torch.frombuffer(data, dtype=torch.bfloat16, offset=width).view(*self._last_frame_shape)
        return StoredLatents(latent, last_frame, data)

    def _read_range(self, row_group: int, row: int, count: int) -> list[StoredLatents]:
        width, last_frame_width = self._width, self._last_frame_width
        n_latent = count * width
        # All latents, and after them all last-frame latents.
        data = memoryview(pa.allocate_buffer(n_latent + count * last_frame_width)).cast("B")
        latent_start = self._layout.offset("latent", row_group, row)
        if last_frame_width:
            last_frame_start = self._layout.offset("last_frame_latent", row_group, row)
            gap = last_frame_start - latent_start - n_latent
            if 0 <= gap <= MAX_GAP_BYTES:
                targets = [data[:n_latent], memoryview(bytearray(gap)), data[n_latent:]]
                self._ranges.read_into(self._uri, latent_start, targets)
            else:
                self._ranges.read_into(self._uri, latent_start, [data[:n_latent]])
                self._ranges.read_into(self._uri, last_frame_start, [data[n_latent:]])
        else:
            self._ranges.read_into(self._uri, latent_start, [data])
        return [self._sample(data, index * width, n_latent + index * last_frame_width) for index in range(count)]

    def _sample(self, data: memoryview, start: int, last_frame_start: int) -> StoredLatents:
        """Return the sample whose latents begin at these offsets of `data`."""
        width, last_frame_width = self._width, self._last_frame_width
        latent = torch.frombuffer(data, dtype=torch.bfloat16, count=width // BYTES_PER_VALUE, offset=start)
        part = data[start : start + width]
        if not last_frame_width:
            return StoredLatents(latent.view(self._shape), None, part)
        last_frame = torch.frombuffer(
            data, dtype=torch.bfloat16, count=last_frame_width // BYTES_PER_VALUE, offset=last_frame_start
        )
        last_frame_part = data[last_frame_start : last_frame_start + last_frame_width]
        return StoredLatents(latent.view(self._shape), last_frame.view(self._last_frame_shape), part, last_frame_part)


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
