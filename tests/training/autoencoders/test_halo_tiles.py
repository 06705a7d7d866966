"""Tiles with a halo: they cover every cell once, and read no more than a tile and its halo."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.noise import uniform_noise
from training.autoencoders._halo_tiles import run_in_halo_tiles, tile_spans


@pytest.mark.slow
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 20))
def test_fewest_spans_cover_every_cell_once(length: int, max_tile: int, halo: int) -> None:
    spans = tile_spans(length, max_tile, halo)
    assert [cell for span in spans for cell in range(span.start, span.stop)] == list(range(length))
    assert len(spans) == -(-length // max_tile)
    for span in spans:
        assert 0 < span.stop - span.start <= max_tile
        assert span.input_start == max(0, span.start - halo)
        assert span.input_stop == min(length, span.stop + halo)


def test_no_tile_reads_more_than_its_halo() -> None:
    sizes: list[tuple[int, ...]] = []

    def run(part: Tensor, tile: int) -> Tensor:
        assert tile == len(sizes)
        sizes.append(tuple(part.shape[-2:]))
        return part

    x = uniform_noise((1, 1, 1, 40, 100))
    assert torch.equal(run_in_halo_tiles(run, x, 16, 3, 1, 1), x)
    assert len(sizes) == 3 * 7
    assert max(max(shape) for shape in sizes) <= 16 + 2 * 3
