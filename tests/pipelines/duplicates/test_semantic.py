"""Pairs of clips with like embeddings, against comparing all with all."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipelines.duplicates.semantic import kmeans, n_cells, nearest_cells, semantic_pairs
from pipelines.engine.shuffle import LocalRows
from tests.support.clip_rows import ScatteredRows, clip_table


def embedded(vectors_ND: NDArray[np.float64], **columns: object) -> pa.Table:
    rows = clip_table([np.zeros(1, np.uint64)] * len(vectors_ND), **columns)
    return rows.append_column("embedding", pa.array([list(map(float, v)) for v in vectors_ND], pa.list_(pa.float32())))


def clouds(seed: int, n: int = 60, dim: int = 16) -> NDArray[np.float64]:
    """Return vectors of which some are near others, at angles on both sides of the bound."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, dim))
    return np.concatenate([base, base[: n // 2] + rng.normal(size=(n // 2, dim)) * rng.uniform(0, 0.25, (n // 2, 1))])


def all_pairs(vectors_ND: NDArray[np.float64], min_cosine: float) -> set[tuple[str, str]]:
    unit = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    cosine = unit @ unit.T
    return {
        (f"{i:04d}", f"{j:04d}")
        for i in range(len(unit))
        for j in range(i + 1, len(unit))
        if cosine[i, j] >= min_cosine
    }


def found_pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["a_uid"].to_pylist(), table["b_uid"].to_pylist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_nearly_all_pairs_within_the_bound_are_found(seed: int) -> None:
    vectors = clouds(seed)
    found = found_pairs(semantic_pairs(LocalRows([embedded(vectors)]), 0.98, 0))
    assert len(set(found)) == len(found)
    wanted = all_pairs(vectors, 0.98)
    assert set(found) <= wanted
    assert len(found) >= 0.95 * len(wanted) > 10


def test_pairs_do_not_depend_on_parts_and_order() -> None:
    table = embedded(clouds(7))
    wanted = semantic_pairs(LocalRows([table]), 0.98, 3)
    for seed in range(3):
        found = semantic_pairs(ScatteredRows([table], seed), 0.98, 3)
        assert (
            found.sort_by([("a_uid", "ascending"), ("b_uid", "ascending")]).to_pylist()
            == wanted.sort_by([("a_uid", "ascending"), ("b_uid", "ascending")]).to_pylist()
        )


def test_clips_that_are_never_paired() -> None:
    vectors = np.tile(np.array([[1.0, 2.0, 3.0]]), (6, 1))
    table = embedded(
        vectors, content_hash=["a", "a", "b", "c", "d", "e"], kind=["video"] * 3 + ["image"] * 2 + ["video"]
    )
    values = table["embedding"].to_pylist()
    values[5] = None
    table = table.set_column(
        table.column_names.index("embedding"), "embedding", pa.array(values, pa.list_(pa.float32()))
    )
    assert set(found_pairs(semantic_pairs(LocalRows([table]), 0.99, 0))) == {
        ("0000", "0002"),
        ("0001", "0002"),
        ("0003", "0004"),
    }


def test_clip_with_a_bad_embedding_is_named() -> None:
    vectors = np.ones((3, 4))
    vectors[1] = 0
    with pytest.raises(ValueError, match="clip 0001: its embedding has the length 0"):
        semantic_pairs(LocalRows([embedded(vectors)]), 0.99, 0)
    one, other = embedded(np.ones((3, 4))), embedded(np.ones((3, 5)), uid=["x", "y", "z"])
    with pytest.raises(ValueError, match="its embedding has"):
        semantic_pairs(LocalRows([one, other]), 0.99, 0)


def test_fewer_than_two_embeddings_give_no_pairs() -> None:
    table = embedded(np.ones((1, 4)))
    assert (
        len(semantic_pairs(LocalRows([table]), 0.99, 0))
        == len(semantic_pairs(LocalRows([table.slice(0, 0)]), 0.99, 0))
        == 0
    )


def test_number_of_cells_grows_with_the_data() -> None:
    assert [n_cells(n) for n in (2, 10_000, 1_000_000, 10**12)] == [1, 100, 1000, 50_000]


def test_kmeans_separates_distant_clouds() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(5, 12)
    points = np.repeat(centres, 40, axis=0) + rng.normal(size=(200, 12)) * 0.05
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    found = kmeans(points, 25, 0)
    cells = nearest_cells(points, found, 2)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(25), abs=1e-5)
    assert (cells[:, 0] != cells[:, 1]).all()
    assert all(len({number // 40 for number in np.flatnonzero(cells[:, 0] == cell)}) <= 1 for cell in range(25))
    assert kmeans(points, 25, 0).tobytes() == found.tobytes()
