"""Pairs of clips alike in meaning: k-means cells of their embeddings, and the cosine inside each cell.

SemDeDup (Abbas et al., 'SemDeDup: Data-efficient learning at web-scale through semantic deduplication', 2023) compares within the cells of
k-means. Here each clip is in its two nearest cells, so that a pair with a border between is compared as well.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.duplicates.clip_hashes import CLIPS, RANKED, as_clips, numbers
from pipelines.duplicates.keys import unique_rows
from pipelines.engine.shuffle import Rows

CELLS_AT_MOST = 50_000
"""SemDeDup's number of cells, for 440 million images."""
SAMPLED_A_CELL = 64
SAMPLE_AT_MOST = 200_000
"""Embeddings that k-means sees. FAISS asks for 39 a cell at least and takes no more than 256 (its `ClusteringParameters`)."""
ROUNDS = 20
NEAREST = 2
BLOCK = 1024
"""Embeddings of which cosines are worked out at a time: 1024 x 1024 of 4 bytes."""

Vectors = NDArray[np.float32]

EMBEDDED = pa.schema([*(CLIPS.field(name) for name in (*RANKED, "origin")), ("vector", pa.binary())])
"""A clip and its embedding, scaled to length 1, as 32-bit floats."""

PAIRS = pa.schema(
    [*(EMBEDDED.field(name).with_name(f"{side}_{name}") for side in "ab" for name in RANKED), ("cosine", pa.float64())]
)


def semantic_pairs(rows: Rows, min_cosine: float, seed: int) -> pa.Table:
    """Rows of `PAIRS`: clips of different files, both videos or both images, whose embeddings have a cosine of at least `min_cosine`.

    `rows` have the columns of `pipelines.duplicates.clip_hashes.READS` and `embedding`; one without an embedding is like no other.
    """
    embedded = rows.map(as_embedded)
    n = sum(embedded.map(counted).collect()["n"].to_pylist())
    if n < 2:
        return PAIRS.empty_table()
    k = cells_for(n)
    share = min(1.0, SAMPLED_A_CELL * k / n, SAMPLE_AT_MOST / n)
    sample = embedded.map(partial(sampled, share=share)).collect().sort_by("uid")
    centres = kmeans(vectors(sample), k, seed)
    found = (
        embedded.map(partial(placed, centres=centres)).grouped("cell", partial(alike, min_cosine=min_cosine)).collect()
    )
    a, b = (np.array(found[name].to_pylist(), "U") for name in ("a_uid", "b_uid"))
    return found.take(pa.array(unique_rows((a, b)))) if len(found) else found


def cells_for(n: int) -> int:
    """About the square root of the number of clips: finding each clip's cell takes n k cosines, comparing inside cells n^2 / k."""
    return max(1, min(CELLS_AT_MOST, math.isqrt(n)))


def as_embedded(rows: pa.Table) -> pa.Table:
    """Rows of `EMBEDDED` of the clips that have an embedding. Raises `ValueError` naming a clip whose embedding cannot be compared."""
    rows = rows.filter(pc.is_valid(rows["embedding"]))
    clips = as_clips(rows)
    unit: list[bytes] = []
    for uid, values in zip(rows["uid"].to_pylist(), rows["embedding"].combine_chunks(), strict=True):
        vector = np.asarray(values.values.to_numpy(zero_copy_only=False), np.float32)
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"clip {uid}: its embedding has the length {length:g}; it must be finite and not 0")
        unit.append((vector / length).astype("<f4").tobytes())
    return clips.select([*RANKED, "origin"]).append_column("vector", pa.array(unit, pa.binary())).cast(EMBEDDED)


def counted(embedded: pa.Table) -> pa.Table:
    return pa.table({"n": pa.array([len(embedded)], pa.int64())})


def sampled(embedded: pa.Table, share: float) -> pa.Table:
    """About this share of the rows, by their uid alone."""
    drawn = numbers(embedded["uid"].to_pylist()).view(np.uint64)
    return embedded.filter(pa.array(drawn <= np.uint64(int(share * (2**64 - 2**12)))))


def vectors(embedded: pa.Table) -> Vectors:
    """`[N, D]` embeddings. Raises `ValueError` naming a clip whose embedding is of another length."""
    data = embedded["vector"].to_pylist()
    for uid, value in zip(embedded["uid"].to_pylist(), data, strict=True):
        if len(value) != len(data[0]):
            raise ValueError(
                f"clip {uid}: its embedding has {len(value) // 4} numbers, others have {len(data[0]) // 4}; run the step that wrote it again"
            )
    return np.frombuffer(b"".join(data), "<f4").reshape(len(data), -1) if data else np.zeros((0, 1), np.float32)


def kmeans(sample_ND: Vectors, k: int, seed: int) -> Vectors:
    """`[k, D]` unit centres: Lloyd's iteration on the sphere from k rows drawn with the seed; a centre nobody is nearest to stays as it is."""
    rng = np.random.default_rng(seed)
    centres = sample_ND[np.sort(rng.choice(len(sample_ND), min(k, len(sample_ND)), replace=False))].copy()
    before = None
    for _ in range(ROUNDS):
        nearest = nearest_cells(sample_ND, centres, 1)[:, 0]
        if before is not None and (nearest == before).all():
            break
        before = nearest
        order = np.argsort(nearest, kind="stable")
        cells, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample_ND[order].astype(np.float64), starts)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres[cells] = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres[cells])
    return centres


def nearest_cells(vectors_ND: Vectors, centres_KD: Vectors, count: int) -> NDArray[np.int64]:
    """`[N, count]` cells of the greatest cosines, the greatest first; of equals the first."""
    count = min(count, len(centres_KD))
    chosen = np.empty((len(vectors_ND), count), np.int64)
    for start in range(0, len(vectors_ND), BLOCK):
        cosine = vectors_ND[start : start + BLOCK] @ centres_KD.T
        for rank in range(count):
            best = cosine.argmax(axis=1)
            chosen[start : start + BLOCK, rank] = best
            cosine[np.arange(len(cosine)), best] = -np.inf
    return chosen


def placed(embedded: pa.Table, centres: Vectors) -> pa.Table:
    """Each row once for each of its nearest cells, with the number of the `cell`."""
    data = vectors(embedded)
    if len(data) and data.shape[1] != centres.shape[1]:
        raise ValueError(
            f"clip {embedded['uid'][0]}: its embedding has {data.shape[1]} numbers, others have {centres.shape[1]}; run its step again"
        )
    cells = nearest_cells(data, centres, NEAREST) if len(data) else np.zeros((0, NEAREST), np.int64)
    rows = np.repeat(np.arange(len(embedded)), cells.shape[1])
    return embedded.take(pa.array(rows)).append_column("cell", pa.array(cells.ravel(), pa.int64()))


def alike(cells: pa.Table, min_cosine: float) -> pa.Table:
    """Rows of `PAIRS` of the clips that share a cell. All rows of a cell have to be there."""
    cells = cells.sort_by([("cell", "ascending"), ("uid", "ascending")])
    data, origin = vectors(cells), np.asarray(cells["origin"].to_numpy(), np.int64)
    still = np.asarray(cells["still"].to_numpy(zero_copy_only=False), bool)
    edges = [*np.unique(np.asarray(cells["cell"].to_numpy(), np.int64), return_index=True)[1].tolist(), len(cells)]
    left, right, cosines = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for start, end in itertools.pairwise(edges):
        for i in range(start, end, BLOCK):
            for j in range(i, end, BLOCK):
                a, b = data[i : min(i + BLOCK, end)], data[j : min(j + BLOCK, end)]
                # A little below the bound first: the sum of a product depends on the block it is in, the exact one below does not.
                rows, columns = np.nonzero(a @ b.T >= min_cosine - 1e-5)
                first, second = rows + i, columns + j
                keep = (first < second) & (origin[first] != origin[second]) & (still[first] == still[second])
                first, second = first[keep], second[keep]
                exact = np.einsum("nd,nd->n", data[first].astype(np.float64), data[second].astype(np.float64))
                left.append(first[exact >= min_cosine])
                right.append(second[exact >= min_cosine])
                cosines.append(exact[exact >= min_cosine])
    sides = [cells.select(list(RANKED)).take(pa.array(np.concatenate(side))) for side in (left, right)]
    found = [column for side in sides for column in side.columns]
    return pa.table([*found, pa.array(np.concatenate(cosines), pa.float64())], schema=PAIRS)
