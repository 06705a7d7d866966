from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.steps.dedup import Dedup, mean_distance, near_pairs


def hashes(rng: np.random.Generator, n: int, frames: int = 3) -> NDArray[np.uint64]:
    return rng.integers(0, 2**64, (n, frames), np.uint64)


def flip(value_F: NDArray[np.uint64], bits: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """The hashes with this many bits flipped in each frame."""
    masks = [sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False)) for _ in value_F.flat]
    return value_F ^ np.array(masks, np.uint64).reshape(value_F.shape)


def table(hashes_NF: NDArray[np.uint64], **columns: list[Any]) -> pa.Table:
    n = len(hashes_NF)
    defaults: dict[str, list[Any]] = {
        "uid": [f"{i:04d}" for i in range(n)],
        "source": [f"file{i}" for i in range(n)],
        "kind": ["video"] * n,
        "width": [100] * n,
        "height": [100] * n,
        "duration_s": [2.0] * n,
        "sharpness": [0.1] * n,
        "phash": [row.astype("<u8").tobytes() for row in hashes_NF],
    }
    return pa.table({**defaults, **columns})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_pairs_are_those_of_comparing_all_with_all(seed: int, max_distance: int) -> None:
    rng = np.random.default_rng(seed)
    base = hashes(rng, 6)
    hashes_NF = np.concatenate([base, *(flip(base, bits, rng) for bits in (0, 3, 6, 9))])
    found = set(near_pairs(hashes_NF, max_distance))
    n = len(hashes_NF)
    brute = {(i, j) for i in range(n) for j in range(i + 1, n) if mean_distance(hashes_NF[i], hashes_NF[j]) <= max_distance}
    assert found == brute


def test_the_best_of_a_group_stays_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    one = hashes(rng, 1)[0]
    hashes_NF = np.stack([one, flip(one, 2, rng), flip(one, 2, rng), hashes(rng, 1)[0]])
    rows = table(hashes_NF, width=[100, 200, 100, 50], sharpness=[0.9, 0.1, 0.5, 0.5])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        solved = {row["uid"]: row for row in Dedup().solve(rows.take(order)).to_pylist()}
        assert {uid: row["cluster"] for uid, row in solved.items()} == {"0000": "0001", "0001": "0001", "0002": "0001", "0003": "0003"}
        assert {uid: row["fate"] for uid, row in solved.items()} == {"0000": "duplicate", "0001": "kept", "0002": "duplicate", "0003": "kept"}
        assert solved["0000"]["fate_reason"] == "near-duplicate of a clip of file1"
        assert solved["0000"]["fate_bound"] == 6.0


@pytest.mark.parametrize(("column", "value"), [("kind", ["video", "image"]), ("source", ["same", "same"])])
def test_images_and_videos_and_clips_of_one_source_are_not_compared(column: str, value: list[str]) -> None:
    one = hashes(np.random.default_rng(1), 1)[0]
    solved = Dedup().solve(table(np.stack([one, one]), **{column: value}))
    assert solved["fate"].to_pylist() == ["kept", "kept"]


def test_a_thousand_black_clips_are_one_group_without_comparing_all_with_all() -> None:
    solved = Dedup().solve(table(np.zeros((1000, 3), np.uint64)))
    assert solved["fate"].to_pylist().count("kept") == 1


def test_no_rows() -> None:
    assert len(Dedup().solve(table(np.zeros((0, 3), np.uint64)).cast(table(np.zeros((1, 3), np.uint64)).schema))) == 0
