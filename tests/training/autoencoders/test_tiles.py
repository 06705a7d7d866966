"""Tiles cover everything, their weights add up to 1, and where a network looks at nothing beyond a cell they change nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from training.autoencoders._tiles import spans, tiled, weights

LENGTHS = st.tuples(st.integers(1, 300), st.integers(4, 64)).flatmap(
    lambda two: st.tuples(st.just(two[0]), st.just(two[1]), st.integers(0, two[1] - 1))
)


@given(LENGTHS)
def test_spans_cover_all_with_the_fewest_tiles_that_overlap_enough(case: tuple[int, int, int]) -> None:
    length, most, overlap = case
    starts, size = spans(length, most, overlap)
    assert size <= most
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(after - before <= size - overlap for before, after in itertools.pairwise(starts))
    assert (len(starts) - 1) * (most - overlap) + overlap < length or len(starts) == 1, (
        "one tile less would not be enough"
    )
    assert starts == sorted(set(starts))


@given(LENGTHS, st.integers(1, 8))
def test_weights_add_up_to_one_everywhere(case: tuple[int, int, int], made: int) -> None:
    length, most, overlap = case
    starts, size = spans(length, most, overlap)
    shares = weights(length * made, [start * made for start in starts], size * made, max(1, overlap * made))
    total = torch.zeros(length * made)
    covered = torch.zeros(length * made)
    for start, share in zip(starts, shares, strict=True):
        assert (share > 0).all()
        total[start * made : (start + size) * made] += share
        covered[start * made : (start + size) * made] += 1
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
    assert (total[covered == 1] == 1).all()


def blocks(x: Tensor) -> Tensor:
    """From cells of 4 x 4 values to one value each."""
    return F.avg_pool2d(x[:, :, 0], 4)[:, :, None]


def spread(x: Tensor) -> Tensor:
    return F.interpolate(x[:, :, 0], scale_factor=4)[:, :, None]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 12))
def test_a_network_that_looks_at_one_cell_is_not_changed_by_tiles(height: int, width: int, most: int) -> None:
    video = torch.rand((1, 3, 1, 4 * height, 4 * width), generator=torch.Generator().manual_seed(height))
    latent = tiled(blocks, video, most, most // 4, 4, 1)
    assert torch.allclose(latent, blocks(video), atol=1e-6)
    assert torch.allclose(tiled(spread, latent, most, most // 4, 1, 4), spread(latent), atol=1e-6)


def test_no_part_is_larger_than_a_tile_and_all_are_alike() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return blocks(x)

    tiled(look, torch.zeros(1, 3, 1, 4 * 9, 4 * 30), 8, 2, 4, 1)
    assert set(seen) == {(4 * 6, 4 * 8)}
    assert len(seen) == 2 * 5
    seen.clear()
    tiled(look, torch.zeros(1, 3, 1, 4 * 8, 4 * 8), 8, 2, 4, 1)
    assert seen == [(32, 32)]


def test_neighbours_are_blended_gradually() -> None:
    """Tiles that disagree by 1 leave no step larger than a ramp's."""
    number = iter(range(9))
    row = tiled(lambda x: torch.full_like(x, float(next(number))), torch.zeros(1, 1, 1, 4, 22), 10, 4, 1, 1)[0, 0, 0, 0]
    assert row.diff().abs().max() < 0.3
    assert (row[0], row[-1]) == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_blended_in_float32(dtype: torch.dtype) -> None:
    assert tiled(blocks, torch.zeros(1, 3, 1, 64, 64, dtype=dtype), 8, 2, 4, 1).dtype == torch.float32
