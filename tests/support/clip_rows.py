"""Clip rows with random hashes for the search for duplicates, and rows in shuffled parts, as on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.arrays import UInt64Array
from pipelines.duplicates.clip_hashes import READ_COLUMNS
from pipelines.engine.shuffle import LocalRows, Rows, RowsFunction

INTS = ("width", "height", "start_pts", "end_pts", "first_pts", "time_base_num", "time_base_den")


def unrelated_hashes(rng: np.random.Generator, n: int, length: int = 12) -> list[UInt64Array]:
    """Return `n` sequences of hashes that have nothing in common; within each, a few bits change from hash to hash."""
    made = []
    for _ in range(n):
        hashes = [int(rng.integers(0, 2**64, dtype=np.uint64))]
        for _ in range(length - 1):
            hashes.append(hashes[-1] ^ int(random_flips(rng, 1, 0.06)[0]))
        made.append(np.array(hashes, np.uint64))
    return made


def random_flips(rng: np.random.Generator, n: int, probability: float) -> UInt64Array:
    """Return `n` hashes in which each bit is set with this probability."""
    bits = (rng.random((n, 64)) < probability).astype(np.uint64) << np.arange(64, dtype=np.uint64)
    return np.asarray(bits.sum(axis=1), np.uint64)


def noisy(rng: np.random.Generator, hashes: UInt64Array, probability: float = 0.04) -> UInt64Array:
    """Return hashes in which each bit is flipped with this probability."""
    return hashes ^ random_flips(rng, len(hashes), probability)


def clip_table(sequences: Sequence[UInt64Array], **columns: Any) -> pa.Table:
    """Return one clip per sequence, each of another file, with the given columns in place of the defaults."""
    n = len(sequences)
    values: dict[str, Any] = {
        "uid": [f"{i:04d}" for i in range(n)],
        "source": [f"file{i}.mp4" for i in range(n)],
        "content_hash": [f"content{i}" for i in range(n)],
        "kind": ["video"] * n,
        "width": [100] * n,
        "height": [100] * n,
        "duration_s": [len(hashes) / 4 for hashes in sequences],
        "sharpness": [0.1] * n,
        "start_pts": [0] * n,
        "end_pts": [len(hashes) for hashes in sequences],
        "first_pts": [0] * n,
        "time_base_num": [1] * n,
        "time_base_den": [4] * n,
        "phash": [hashes.astype("<u8").tobytes() for hashes in sequences],
        **columns,
    }
    kinds = {
        **dict.fromkeys(READ_COLUMNS, pa.string()),
        **dict.fromkeys(INTS, pa.int64()),
        "duration_s": pa.float64(),
        "sharpness": pa.float64(),
    }
    kinds["phash"] = pa.binary()
    return pa.table({name: pa.array(value, kinds.get(name)) for name, value in values.items()})


@dataclass(frozen=True)
class ScatteredRows:
    """Rows in small parts that are shuffled before each operation, with groups in several tables, as on a cluster."""

    tables: Sequence[pa.Table]
    seed: int
    parts: int = 5

    def map(self, function: RowsFunction) -> ScatteredRows:
        rows = self._shuffled()
        size = -(-len(rows) // self.parts) or 1
        return self._next(
            [function(rows.slice(start, size)) for start in range(0, len(rows), size)] + [function(rows.slice(0, 0))]
        )

    def grouped(self, key: str, function: RowsFunction) -> ScatteredRows:
        rows = self._shuffled()
        part = np.array([hash(value) % self.parts for value in rows[key].to_pylist()], np.int64)
        return self._next([function(rows.filter(pa.array(part == number))) for number in range(self.parts)])

    def union(self, *others: Rows) -> ScatteredRows:
        return self._next([*self.tables, *(other.collect() for other in others)])

    def stored(self) -> ScatteredRows:
        return self

    def collect(self) -> pa.Table:
        return self._shuffled()

    def _next(self, tables: Sequence[pa.Table]) -> ScatteredRows:
        return ScatteredRows(tables, self.seed + 1, self.parts)

    def _shuffled(self) -> pa.Table:
        rows = LocalRows(self.tables).collect()
        return rows.take(pa.array(np.random.default_rng(self.seed).permutation(len(rows))))
