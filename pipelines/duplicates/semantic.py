"""Pairs of clips with like content: k-means cells of their embeddings, and the cosine of pairs inside each cell.

SemDeDup (Abbas et al., 'SemDeDup: Data-efficient learning at web-scale through semantic deduplication', 2023)
compares within the cells of k-means. Here each clip is in its two nearest cells, so that pairs on both sides of a
border are compared as well.

Shape legend: N clips, D numbers of an embedding, K cells.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.arrays import Float32Array, Int64Array
from pipelines.duplicates.clip_hashes import CLIPS, RANK_COLUMNS, as_clips, numbers_of
from pipelines.duplicates.keys import unique_rows
from pipelines.engine.shuffle import Rows

MAX_CELLS = 50_000
"""SemDeDup's number of cells, for 440 million images."""
SAMPLES_PER_CELL = 64
MAX_SAMPLES = 200_000
"""Embeddings that k-means is fitted to. FAISS asks for at least 39 per cell and takes at most 256 (its
`ClusteringParameters`)."""
MAX_ITERATIONS = 20
CELLS_PER_CLIP = 2
BLOCK = 1024
"""Rows and columns of a block of cosines that is computed in one product: 1024 x 1024 of 4 bytes."""

EMBEDDED = pa.schema([*(CLIPS.field(name) for name in (*RANK_COLUMNS, "origin")), ("vector", pa.binary())])
"""A clip and its embedding, scaled to length 1, as 32-bit floats."""

PAIRS = pa.schema(
    [
        *(EMBEDDED.field(name).with_name(f"{side}_{name}") for side in "ab" for name in RANK_COLUMNS),
        ("cosine", pa.float64()),
    ]
)


def semantic_pairs(rows: Rows, min_cosine: float, seed: int) -> pa.Table:
    """Return rows of `PAIRS`: clips of different files, both videos or both images, with a cosine of at least
    `min_cosine`.

    `rows` have `READ_COLUMNS` and `embedding`; a clip without an embedding is in no pair.
    """
    embedded = rows.map(embedded_clips)
    n = sum(embedded.map(_row_count).collect()["n"].to_pylist())
    if n < 2:
        return PAIRS.empty_table()
    k = n_cells(n)
    share = min(1.0, SAMPLES_PER_CELL * k / n, MAX_SAMPLES / n)
    sample = embedded.map(partial(_sample, share=share)).collect().sort_by("uid")
    centres = kmeans(vectors_of(sample), k, seed)
    cells = embedded.map(partial(assign_cells, centres=centres))
    found = cells.grouped("cell", partial(pairs_in_cells, min_cosine=min_cosine)).collect()
    a, b = (np.array(found[name].to_pylist(), "U") for name in ("a_uid", "b_uid"))
    return found.take(pa.array(unique_rows((a, b)))) if len(found) else found


def n_cells(n: int) -> int:
    """Return about the square root of n clips: assigning cells takes n k cosines, comparing in cells n^2 / k."""
    return max(1, min(MAX_CELLS, math.isqrt(n)))


def embedded_clips(rows: pa.Table) -> pa.Table:
    """Return rows of `EMBEDDED` for the clips that have an embedding.

    Raises `ValueError` with the uid of a clip whose embedding is zero or not finite.
    """
    rows = rows.filter(pc.is_valid(rows["embedding"]))
    clips = as_clips(rows)
    unit: list[bytes] = []
    for uid, values in zip(rows["uid"].to_pylist(), rows["embedding"].combine_chunks(), strict=True):
        vector = np.asarray(values.values.to_numpy(zero_copy_only=False), np.float32)
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"clip {uid}: its embedding has the length {length:g}; it must be finite and not 0")
        unit.append((vector / length).astype("<f4").tobytes())
    return clips.select([*RANK_COLUMNS, "origin"]).append_column("vector", pa.array(unit, pa.binary())).cast(EMBEDDED)


def _row_count(embedded: pa.Table) -> pa.Table:
    return pa.table({"n": pa.array([len(embedded)], pa.int64())})


def _sample(embedded: pa.Table, share: float) -> pa.Table:
    """Return about this share of the rows, chosen by their uid alone."""
    drawn = numbers_of(embedded["uid"].to_pylist()).view(np.uint64)
    return embedded.filter(pa.array(drawn <= np.uint64(int(share * (2**64 - 2**12)))))


def vectors_of(embedded: pa.Table) -> Float32Array:
    """Return embeddings `[N, D]`. Raises `ValueError` with the uid of a clip whose embedding has another length."""
    data = embedded["vector"].to_pylist()
    for uid, value in zip(embedded["uid"].to_pylist(), data, strict=True):
        if len(value) != len(data[0]):
            raise _length_error(uid, len(value) // 4, len(data[0]) // 4)
    return np.frombuffer(b"".join(data), "<f4").reshape(len(data), -1) if data else np.zeros((0, 1), np.float32)


def _length_error(uid: str, length: int, other_length: int) -> ValueError:
    return ValueError(
        f"clip {uid}: its embedding has {length} numbers, others have {other_length}; run the step that wrote it again"
    )


def kmeans(sample_ND: Float32Array, k: int, seed: int) -> Float32Array:
    """Return `[K, D]` unit centres by Lloyd's iteration on the sphere, from k rows drawn with the seed.

    A centre that is nearest to no row is not changed.
    """
    rng = np.random.default_rng(seed)
    centres = sample_ND[np.sort(rng.choice(len(sample_ND), min(k, len(sample_ND)), replace=False))].copy()
    before = None
    for _ in range(MAX_ITERATIONS):
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


def nearest_cells(vectors_ND: Float32Array, centres_KD: Float32Array, count: int) -> Int64Array:
    """Return `[N, count]` cells of the greatest cosines, the greatest first; of equal ones the first."""
    count = min(count, len(centres_KD))
    chosen = np.empty((len(vectors_ND), count), np.int64)
    for start in range(0, len(vectors_ND), BLOCK):
        cosine = vectors_ND[start : start + BLOCK] @ centres_KD.T
        for rank in range(count):
            best = cosine.argmax(axis=1)
            chosen[start : start + BLOCK, rank] = best
            cosine[np.arange(len(cosine)), best] = -np.inf
    return chosen


def assign_cells(embedded: pa.Table, centres: Float32Array) -> pa.Table:
    """Return each row once per cell it is in, with the number of the `cell`."""
    data = vectors_of(embedded)
    if len(data) and data.shape[1] != centres.shape[1]:
        raise _length_error(embedded["uid"][0].as_py(), data.shape[1], centres.shape[1])
    cells = nearest_cells(data, centres, CELLS_PER_CLIP) if len(data) else np.zeros((0, CELLS_PER_CLIP), np.int64)
    rows = np.repeat(np.arange(len(embedded)), cells.shape[1])
    return embedded.take(pa.array(rows)).append_column("cell", pa.array(cells.ravel(), pa.int64()))


def pairs_in_cells(cells: pa.Table, min_cosine: float) -> pa.Table:
    """Return rows of `PAIRS` for the clips that share a cell. All rows of a cell have to be in the table."""
    cells = cells.sort_by([("cell", "ascending"), ("uid", "ascending")])
    data, origin = vectors_of(cells), np.asarray(cells["origin"].to_numpy(), np.int64)
    still = np.asarray(cells["still"].to_numpy(zero_copy_only=False), bool)
    edges = [*np.unique(np.asarray(cells["cell"].to_numpy(), np.int64), return_index=True)[1].tolist(), len(cells)]
    left, right, cosines = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for start, end in itertools.pairwise(edges):
        for i in range(start, end, BLOCK):
            for j in range(i, end, BLOCK):
                a, b = data[i : min(i + BLOCK, end)], data[j : min(j + BLOCK, end)]
                # First with a slightly lower bound: sums of this product depend on the block, the exact ones below do
                # not.
                rows, columns = np.nonzero(a @ b.T >= min_cosine - 1e-5)
                first, second = rows + i, columns + j
                keep = (first < second) & (origin[first] != origin[second]) & (still[first] == still[second])
                first, second = first[keep], second[keep]
                exact = np.einsum("nd,nd->n", data[first].astype(np.float64), data[second].astype(np.float64))
                left.append(first[exact >= min_cosine])
                right.append(second[exact >= min_cosine])
                cosines.append(exact[exact >= min_cosine])
    sides = [cells.select(list(RANK_COLUMNS)).take(pa.array(np.concatenate(side))) for side in (left, right)]
    found = [column for side in sides for column in side.columns]
    return pa.table([*found, pa.array(np.concatenate(cosines), pa.float64())], schema=PAIRS)
