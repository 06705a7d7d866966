"""dedup: near-duplicate clips by perceptual hash; the best of each group stays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.step import FATE_FIELDS, Global, column

HASH_BITS = 64
LONGEST_RUN = 64
"""In a band shared by very many clips (black frames), each is compared with this many neighbours, so cost stays linear."""

WRITES = (
    column("cluster", pa.string(), "uid of the clip that stands for the near-duplicate group; a clip without duplicates is its own"),
    column("duplicate_distance", pa.float64(), "mean Hamming distance (bits of 64) to that clip; null where there is none"),
)


class Dedup(Global):
    """Clips whose frame hashes differ by at most `max_distance` bits on average are near-duplicates, and so are their duplicates.

    Clips of one source are not compared: the parts of a long shot look alike and are not copies. Of a group, the clip with
    the most pixels stays, then the longest, then the sharpest, then the first by source.
    """

    name: str = "dedup"
    rows_per_part = 1024
    method: Literal["phash"] = "phash"
    max_distance: int = Field(
        6, ge=0, le=20, description="Bits of 64 by which hashes of the same frame may differ; 6 survives re-encoding and rescaling."
    )

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "width", "height", "duration_s", "sharpness", "phash"

    def writes(self) -> tuple[pa.Field, ...]:
        return WRITES

    def solve(self, rows: pa.Table) -> pa.Table:
        """Groups are the connected components of the near-duplicate pairs."""
        uids, sources, kinds = (rows[name].to_pylist() for name in ("uid", "source", "kind"))
        hashes_NF = frame_hashes(rows["phash"].to_pylist())
        group = np.arange(len(uids))
        for kind in sorted(set(kinds)):
            members = np.flatnonzero(np.array(kinds) == kind)
            for i, j in near_pairs(hashes_NF[members], self.max_distance):
                if sources[members[i]] != sources[members[j]]:
                    _unite(group, int(members[i]), int(members[j]))
        best = _best_of_groups(np.array([_root(group, i) for i in range(len(uids))], int), rows)
        solved: list[dict[str, object]] = []
        for i, chosen in enumerate(best):
            row: dict[str, object] = {"uid": uids[i], "cluster": uids[chosen], "fate": "kept"}
            if i != chosen:
                distance = float(mean_distance(hashes_NF[i], hashes_NF[chosen]))
                reason = f"near-duplicate of a clip of {sources[chosen]}"
                row |= {"duplicate_distance": distance, "fate": "duplicate", "fate_reason": reason}
                row |= {"fate_value": distance, "fate_bound": float(self.max_distance)}
            solved.append(row)
        return pa.Table.from_pylist(solved, pa.schema([rows.schema.field("uid"), *WRITES, *FATE_FIELDS]))


def frame_hashes(columns: list[bytes]) -> NDArray[np.uint64]:
    """`[N, F]` hashes of the same F frames (first, middle, last) of each clip."""
    if not columns:
        return np.zeros((0, 1), np.uint64)
    return np.stack([np.frombuffer(value, "<u8") for value in columns])


def mean_distance(a_F: NDArray[np.uint64], b_F: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Mean Hamming distance in bits over the frames (the last axis)."""
    distance: NDArray[np.float64] = np.bitwise_count(a_F ^ b_F).mean(axis=-1)
    return distance


def near_pairs(hashes_NF: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[int, int]]:
    """Pairs at most `max_distance` apart, found by banding.

    If the mean distance of F frames is at most d, some frame differs in at most d bits, so of its d + 1 bands of bits one
    is equal (the pigeonhole principle): only clips that share a band of the same frame are compared.
    """
    edges = np.linspace(0, HASH_BITS, max_distance + 2).astype(int)
    seen: set[tuple[int, int]] = set()
    for frame in range(hashes_NF.shape[1]):
        for low, high in itertools.pairwise(edges):
            band = (hashes_NF[:, frame] >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
            order = np.argsort(band, kind="stable")
            for step in range(1, min(LONGEST_RUN, len(order))):
                same = np.flatnonzero(band[order[step:]] == band[order[:-step]])
                if not len(same):
                    break
                left, right = order[same], order[same + step]
                near = mean_distance(hashes_NF[left], hashes_NF[right]) <= max_distance
                for i, j in zip(left[near].tolist(), right[near].tolist(), strict=True):
                    pair = (i, j) if i < j else (j, i)
                    if pair not in seen:
                        seen.add(pair)
                        yield pair


def _root(group: NDArray[np.int64], i: int) -> int:
    while group[i] != i:
        group[i] = group[group[i]]
        i = int(group[i])
    return i


def _unite(group: NDArray[np.int64], i: int, j: int) -> None:
    i, j = _root(group, i), _root(group, j)
    group[max(i, j)] = min(i, j)


def _best_of_groups(root: NDArray[np.int64], rows: pa.Table) -> list[int]:
    """For each row the index of the best row of its group."""
    columns = [rows[name].to_pylist() for name in ("width", "height", "duration_s", "sharpness", "source", "uid")]
    quality = [(-w * h, -(d or 0.0), -(s or 0.0), source, uid) for w, h, d, s, source, uid in zip(*columns, strict=True)]
    best: dict[int, int] = {}
    for i, r in enumerate(root.tolist()):
        if r not in best or quality[i] < quality[best[r]]:
            best[r] = i
    return [best[r] for r in root.tolist()]
