"""Latents of any row of any shard, read without conversion: a row's bytes go from the file into its tensor."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster import storage
from training.data.byte_ranges import ByteRanges
from training.data.footer import READ_ERRORS, DamagedError
from training.data.layout import Layout, locate
from training.data.row_groups import RowGroups
from training.data.shards import BYTES_PER_VALUE, ROW_GROUP_BYTES, ShardInfo, checksum_of, parse_info

# Latents are [C, t, h, w].

READERS = 4
"""Threads that read: twice what a local disk keeps busy, and as many requests of an object store under way."""

MAX_GAP_BYTES = {True: 2**12, False: 2**18}
"""Bytes between a latent and its tail latent that are read with them, local or not: a request costs an object store some 10 ms, which is what
it takes to send as much."""

LOG = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a sample is, as a manifest says."""

    file: str
    """Relative to the tables' root."""
    row_group: int
    row: int
    """Counted within the row group."""


class StoredLatents(NamedTuple):
    """One sample as its bytes are now; tensors of neighbouring rows may share memory, but no two overlap."""

    latent: Tensor
    """bfloat16 `[C, t, h, w]`."""
    tail_latent: Tensor | None
    """bfloat16 `[C, 1, h, w]`; None for an image."""
    checksum: int
    """CRC-32 of the bytes of both; the column `checksum` has it as written."""


@dataclass(frozen=True)
class _Shard:
    uri: str
    info: ShardInfo
    layout: Layout | None


class ShardReader:
    """Latents of any row of any shard below a root; from any thread, local or remote. Files stay open, and no footer is read twice.

    Methods raise `DamagedError`, naming the file, for what cannot be read. That bytes are those that were written is for the caller to
    check: the manifest has the checksum to compare with.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._shards: dict[str, _Shard] = {}
        self._bytes = ByteRanges()
        self._parquet = RowGroups(["latent", "tail_latent"])

    def info(self, file: str) -> ShardInfo:
        """Footer of a shard; `file` is relative to the root."""
        return self._shard(file).info

    def read(self, file: str, row_group: int, row: int) -> StoredLatents:
        """One sample."""
        (stored,) = self._read_rows(self._shard(file), row_group, row, 1)
        return stored

    def read_many(self, places: Iterable[Place], threads: int = READERS) -> Iterator[StoredLatents | DamagedError]:
        """Samples in the order given, read ahead by threads; neighbouring rows that follow each other are one read.

        What is wrong with a sample comes in its place, so that it costs no other one.
        """
        ahead: deque[Future[list[StoredLatents | DamagedError]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="shards") as pool:
            try:
                for run in self._runs(places):
                    ahead.append(pool.submit(self._read_run, run))
                    if len(ahead) > 2 * threads:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _runs(self, places: Iterable[Place]) -> Iterator[list[Place]]:
        """Consecutive places that are next to each other in a row group, up to the size of a row group as we write them."""
        run: list[Place] = []
        for place in places:
            place = Place(*place)
            follows = run and place == run[-1]._replace(row=run[-1].row + 1)
            if run and not (follows and (len(run) + 1) * self._row_bytes(place.file) <= ROW_GROUP_BYTES):
                yield run
                run = []
            run.append(place)
        if run:
            yield run

    def _row_bytes(self, file: str) -> int:
        shard = self._shards.get(file)
        return shard.info.row_bytes if shard else 0

    def _read_run(self, run: list[Place]) -> list[StoredLatents | DamagedError]:
        try:
            return list(self._read_rows(self._shard(run[0].file), run[0].row_group, run[0].row, len(run)))
        except DamagedError as error:
            return [error] if len(run) == 1 else list(itertools.chain.from_iterable(self._read_run([place]) for place in run))

    def _shard(self, file: str) -> _Shard:
        if file not in self._shards:
            self._shards[file] = _open_shard(storage.join(self._root, file))
        return self._shards[file]

    def _read_rows(self, shard: _Shard, row_group: int, row: int, count: int) -> list[StoredLatents]:
        if shard.layout is None:
            return [self._through_parquet(shard, row_group, row + number) for number in range(count)]
        _check_place(shard.uri, row_group, row + count - 1, len(shard.layout.n_rows), lambda: int(shard.layout.n_rows[row_group]))
        ...
