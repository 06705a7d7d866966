"""Clip rows with made-up hashes, as the search for duplicates reads them, and rows that come in parts as they do on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.duplicates.clip_hashes import READS
from pipelines.engine.shuffle import LocalRows, Rows, RowsFunction

Hashes = NDArray[np.uint64]
INTS = ("width", "height", "start_pts", "end_pts", "first_pts", "time_base_num", "time_base_den")


def strangers(rng: np.random.Generator, n: int, length: int = 12) -> list[Hashes]:
    """Sequences of hashes that have nothing in common and change a little from one to the next."""
    made = []
    for _ in range(n):
        hashes = [int(rng.integers(0, 2**64, dtype=np.uint64))]
        for _ in range(length - 1):
            hashes.append(hashes[-1] ^ int(flips(rng, 1, 0.06)[0]))
        made.append(np.array(hashes, np.uint64))
    return made


def flips(rng: np.random.Generator, n: int, chance: float) -> Hashes:
    """Bits to turn over, each with this chance."""
    bits = (rng.random((n, 64)) < chance).astype(np.uint64) << np.arange(64, dtype=np.uint64)
    return np.asarray(bits.sum(axis=1), np.uint64)


def noisy(rng: np.random.Generator, hashes: Hashes, chance: float = 0.04) -> Hashes:
    return hashes ^ flips(rng, len(hashes), chance)


def clip_table(sequences: Sequence[Hashes], **columns: Any) -> pa.Table:
    """One clip a sequence, each of a file of its own."""
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
        **dict.fromkeys(READS, pa.string()),
        **dict.fromkeys(INTS, pa.int64()),
        "duration_s": pa.float64(),
        "sharpness": pa.float64(),
    }
    kinds["phash"] = pa.binary()
    return pa.table({name: pa.array(value, kinds.get(name)) for name, value in values.items()})


@dataclass(frozen=True)
class ScatteredRows:
    """Rows in small parts, shuffled before everything, whose groups come in several tables: as a cluster may hand them out."""

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

    def collect(self) -> pa.Table:
        return self._shuffled()

    def _next(self, tables: Sequence[pa.Table]) -> ScatteredRows:
        return ScatteredRows(tables, self.seed + 1, self.parts)

    def _shuffled(self) -> pa.Table:
        rows = LocalRows(self.tables).collect()
        return rows.take(pa.array(np.random.default_rng(self.seed).permutation(len(rows))))
