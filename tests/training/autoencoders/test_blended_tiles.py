"""Blended tiles cover everything, their weights add up to 1, and they change nothing if a value depends on its cell
only.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from training.autoencoders._blended_tiles import blending_weights, run_in_blended_tiles, tile_starts

LENGTHS = st.tuples(st.integers(1, 300), st.integers(4, 64)).flatmap(
    lambda case: st.tuples(st.just(case[0]), st.just(case[1]), st.integers(0, case[1] - 1))
)
"""Length of a side, largest tile, and overlap, in cells."""


@pytest.mark.slow
@given(LENGTHS)
def test_fewest_tiles_that_overlap_enough_cover_all(case: tuple[int, int, int]) -> None:
    length, max_tile, overlap = case
    starts, size = tile_starts(length, max_tile, overlap)
    assert size <= max_tile
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(after - before <= size - overlap for before, after in itertools.pairwise(starts))
    fewer_cover = (len(starts) - 1) * (max_tile - overlap) + overlap
    assert fewer_cover < length or len(starts) == 1, "one tile fewer would be enough"
    assert starts == sorted(set(starts))


@pytest.mark.slow
@given(LENGTHS, st.integers(1, 8))
def test_weights_add_up_to_one_everywhere(case: tuple[int, int, int], cell_out: int) -> None:
    length, max_tile, overlap = case
    starts, size = tile_starts(length, max_tile, overlap)
    starts_out = [start * cell_out for start in starts]
    weights = blending_weights(length * cell_out, starts_out, size * cell_out, max(1, overlap * cell_out))
    total = torch.zeros(length * cell_out)
    n_tiles = torch.zeros(length * cell_out)
    for start, weight in zip(starts_out, weights, strict=True):
        assert (weight > 0).all()
        total[start : start + size * cell_out] += weight
        n_tiles[start : start + size * cell_out] += 1
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
    assert (total[n_tiles == 1] == 1).all()


def cell_means(x: Tensor) -> Tensor:
    """Return one value per cell of 4 x 4 values."""
    return F.avg_pool2d(x[:, :, 0], 4)[:, :, None]


def enlarged_cells(x: Tensor) -> Tensor:
    """Return 4 x 4 values per cell of one value."""
    return F.interpolate(x[:, :, 0], scale_factor=4)[:, :, None]


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 12))
def test_tiles_change_nothing_if_each_cell_is_computed_alone(height: int, width: int, max_tile: int) -> None:
    video = torch.rand((1, 3, 1, 4 * height, 4 * width), generator=torch.Generator().manual_seed(height))
    latent = run_in_blended_tiles(cell_means, video, max_tile, max_tile // 4, 4, 1)
    assert torch.allclose(latent, cell_means(video), atol=1e-6)
    decoded = run_in_blended_tiles(enlarged_cells, latent, max_tile, max_tile // 4, 1, 4)
    assert torch.allclose(decoded, enlarged_cells(latent), atol=1e-6)


def test_all_tiles_have_one_size_of_at_most_the_largest() -> None:
    sizes = []

    def run(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[-2:]))
        return cell_means(x)

    run_in_blended_tiles(run, torch.zeros(1, 3, 1, 4 * 9, 4 * 30), 8, 2, 4, 1)
    assert set(sizes) == {(4 * 6, 4 * 8)}
    assert len(sizes) == 2 * 5
    sizes.clear()
    run_in_blended_tiles(run, torch.zeros(1, 3, 1, 4 * 8, 4 * 8), 8, 2, 4, 1)
    assert sizes == [(32, 32)]


def test_neighbours_are_blended_gradually() -> None:
    """Tiles that differ by 1 leave no step larger than that of a ramp."""
    values = iter(range(9))

    def run(x: Tensor) -> Tensor:
        return torch.full_like(x, float(next(values)))

    row = run_in_blended_tiles(run, torch.zeros(1, 1, 1, 4, 22), 10, 4, 1, 1)[0, 0, 0, 0]
    assert row.diff().abs().max() < 0.3
    assert row[[0, -1]].tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_blended_in_float32(dtype: torch.dtype) -> None:
    video = torch.zeros(1, 3, 1, 64, 64, dtype=dtype)
    assert run_in_blended_tiles(cell_means, video, 8, 2, 4, 1).dtype == torch.float32
