"""Latents of any row of any shard, without conversion: a row's bytes are read from the file into its tensor."""

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

# Latents are [C, t, h, w]; N neighbouring rows.

READER_THREADS = 4
"""Threads that read ahead."""

MAX_GAP_BYTES = 2**18
"""Most bytes between a latent and its tail latent that are read along with them from an object store. What it takes to begin an answer, some
10 ms, it would also take to send a few hundred kilobytes."""

LOG = logging.getLogger(__name__)


class RowReference(NamedTuple):
    """Where a sample is, as the manifest says."""

    file: str
    """Relative to the tables' root."""
    row_group: int
    row: int
    """Counted within the row group."""


class StoredLatents:
    """One sample, as its bytes are now. Samples that were read together share an allocation, and no part of it.

    `latent` is bfloat16 `[C, t, h, w]`, `last_frame_latent` `[C, 1, h, w]`, None for an image.
    """

    __slots__ = ("_checksum", "_parts", "latent", "last_frame_latent")

    def __init__(self, latent: Tensor, last_frame_latent: Tensor | None, *parts: memoryview) -> None:
        """`parts` are the bytes of both."""
        self.latent, self.last_frame_latent, self._parts = latent, last_frame_latent, parts
        self._checksum: int | None = None

    @property
    def checksum(self) -> int:
        """CRC-32 of the bytes of both; the column `checksum` has it as written. Taken when first asked for, so ask before changing them."""
        if self._checksum is None:
            self._checksum = checksum_of(*self._parts)
        return self._checksum

    def summed(self) -> StoredLatents:
        """Itself, its checksum taken: while the bytes are in the processor's caches, and not on the thread that waits for them."""
        self._checksum = self.checksum
        return self


class ShardReader:
    """Latents of any row of any shard below a root; from any thread, local or remote. Files stay open, and a footer is read once.

    Every method raises `DamagedError`, naming the file, for what cannot be read. Whether the bytes are those that were written is for the
    caller to check, who has the checksum in the manifest.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._shards: dict[str, _Shard] = {}
        self._ranges = ByteRanges()
        self._groups = RowGroups(["latent", "last_frame_latent"])

    def info(self, file: str) -> ShardInfo:
        """Footer of a shard; `file` is relative to the root."""
        return self._shard(file).info

    def read(self, file: str, row_group: int, row: int) -> StoredLatents:
        """One sample."""
        return self._shard(file).read(row_group, row, 1)[0]

    def read_many(
        self, places: Iterable[RowReference], threads: int = READER_THREADS
    ) -> Iterator[StoredLatents | DamagedError]:
        """Samples in the order given, read ahead by threads, which take their checksums too; places that follow each other in a row group are
        read at once.

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

    def _try_run(self, first: RowReference, count: int) -> list[StoredLatents | DamagedError]:
        try:
            return [sample.summed() for sample in self._shard(first.file).read(first.row_group, first.row, count)]
        except DamagedError as error:
            if count == 1:
                return [error]
        return [
            sample for number in range(count) for sample in self._try_run(first._replace(row=first.row + number), 1)
        ]

    def _shard(self, file: str) -> _Shard:
        # Two threads may both open it; they find the same, and one is kept.
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
        if (
            layout is None
            or layout.data_end != data_end
            or layout.widths != (widths if info.bucket.frames > 1 else {**widths, "last_frame_latent": 0})
        ):
            LOG.warning(
                "%s: is not laid out as `write_shard` does; whole row groups of it are read, which takes longer", uri
            )
            return _ForeignShard(uri, info, self._groups)
        return _OwnShard(uri, info, layout, self._ranges)


class _OwnShard:
    """A shard as `write_shard` lays it out: of each row, exactly its bytes are read."""

    def __init__(self, uri: str, info: ShardInfo, layout: Layout, ranges: ByteRanges) -> None:
        self.info = info
        self._uri, self._layout, self._ranges = uri, layout, ranges
        self._width, self._tail_width = layout.widths["latent"], layout.widths["last_frame_latent"]
        self._shape, self._tail_shape = info.latent_shape, info.last_frame_shape
        self._is_local = storage.is_local(uri)

    def read(self, row_group: int, row: int, count: int) -> list[StoredLatents]:
        """`count` rows that follow each other; of an object store in one request or two."""
        self._layout.check(self._uri, row_group, row + count - 1)
        if self._is_local:
            # A system call costs less than a larger allocation does.
            return [self._one(row_group, row + number) for number in range(count)]
        return self._samples(row_group, row, count)

    def _one(self, row_group: int, row: int) -> StoredLatents:
        """`_samples` of one row of a local file, written out: threads take turns at what is not a system call, so each call counts."""
        width, tail_width, starts = self._width, self._tail_width, self._layout.starts
        # Arrow's allocator keeps what other threads give back; malloc returns it to the system, and a third of the time of reading then
        # went into page faults.
        data = memoryview(pa.allocate_buffer(width + tail_width))
        self._ranges.read_into(self._uri, starts["latent"][row_group] + row * width, [data[:width]])
        if tail_width:
            self._ranges.read_into(self._uri, starts["last_frame_latent"][row_group] + row * tail_width, [data[width:]])
        # Sizes one by one, which torch takes in half the time that a tuple of them takes.
        latent = torch.frombuffer(data, dtype=torch.bfloat16, count=width // BYTES_PER_VALUE).view(*self._shape)
        tail = (
            torch.frombuffer(data, dtype=torch.bfloat16, offset=width).view(*self._tail_shape) if tail_width else None
        )
        return StoredLatents(latent, tail, data)

    def _samples(self, row_group: int, row: int, count: int) -> list[StoredLatents]:
        width, tail_width = self._width, self._tail_width
        n_latent = count * width
        # Latents, and after them tail latents.
        data = memoryview(pa.allocate_buffer(n_latent + count * tail_width)).cast("B")
        latent_at = self._layout.offset("latent", row_group, row)
        if tail_width:
            tail_at = self._layout.offset("last_frame_latent", row_group, row)
            gap = tail_at - latent_at - n_latent
            if 0 <= gap <= MAX_GAP_BYTES:
                self._ranges.read_into(
                    self._uri, latent_at, [data[:n_latent], memoryview(bytearray(gap)), data[n_latent:]]
                )
            else:
                self._ranges.read_into(self._uri, latent_at, [data[:n_latent]])
                self._ranges.read_into(self._uri, tail_at, [data[n_latent:]])
        else:
            self._ranges.read_into(self._uri, latent_at, [data])
        return [self._sample(data, number * width, n_latent + number * tail_width) for number in range(count)]

    def _sample(self, data: memoryview, at: int, tail_at: int) -> StoredLatents:
        latent = torch.frombuffer(data, dtype=torch.bfloat16, count=self._width // BYTES_PER_VALUE, offset=at).view(
            self._shape
        )
        if not self._tail_width:
            return StoredLatents(latent, None, data[at : at + self._width])
        tail = torch.frombuffer(data, dtype=torch.bfloat16, count=self._tail_width // BYTES_PER_VALUE, offset=tail_at)
        return StoredLatents(
            latent, tail.view(self._tail_shape), data[at : at + self._width], data[tail_at : tail_at + self._tail_width]
        )


class _ForeignShard:
    """A shard that another program has written anew, compressed for instance: read as any Parquet file is."""

    def __init__(self, uri: str, info: ShardInfo, groups: RowGroups) -> None:
        self.info = info
        self._uri, self._groups = uri, groups

    def read(self, row_group: int, row: int, count: int) -> list[StoredLatents]:
        """`count` rows that follow each other."""
        table = self._groups.read(self._uri, row_group)
        return [self._sample(table, row_group, number) for number in range(row, row + count)]

    def _sample(self, table: pa.Table, row_group: int, row: int) -> StoredLatents:
        if not 0 <= row < len(table):
            raise DamagedError(f"{self._uri}: row group {row_group} has no row {row}; it has {len(table)}")
        latent, tail = (table[column][row].as_buffer() for column in ("latent", "last_frame_latent"))
        if latent is None:
            raise DamagedError(f"{self._uri}: row {row} of row group {row_group} has no latent")
        values = self._tensor(latent, self.info.latent_shape)
        if tail is None:
            return StoredLatents(values, None, memoryview(latent))
        return StoredLatents(
            values, self._tensor(tail, self.info.last_frame_shape), memoryview(latent), memoryview(tail)
        )

    def _tensor(self, data: pa.Buffer, shape: tuple[int, ...]) -> Tensor:
        if data.size != math.prod(shape) * BYTES_PER_VALUE:
            raise DamagedError(
                f"{self._uri}: it holds {data.size} bytes a row where the shape {list(shape)} of its footer has another number"
            )
        # Copied: Arrow's memory is read-only, and the cache has it too.
        return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(shape)


_Shard = _OwnShard | _ForeignShard


def _runs(places: Iterable[RowReference]) -> Iterator[tuple[RowReference, int]]:
    """First place and length of each run of places that follow each other in a row group."""
    first, following, count = None, None, 0
    for place in places:
        if first is not None and place == following:
            count += 1
        else:
            if first is not None:
                yield first, count
            first, count = place, 1
        following = (place.file, place.row_group, place.row + 1)
    if first is not None:
        yield first, count
