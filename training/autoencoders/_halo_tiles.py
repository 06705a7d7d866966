"""Tiles of large frames that read a halo as wide as the network's receptive field, so that results differ by rounding
only.

A network without attention, and without statistics over a frame, computes a value from its surroundings only. If a tile
reads all of them, there is no seam, and nothing to blend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Sides are counted in cells, which are the latent rows and columns. A cell has `cell_in` values a side of the input and
# `cell_out` of the result: 8 and 1 for an encoder of blocks of 8 pixels.


@dataclass(frozen=True)
class TileSpan:
    """The cells `[start, stop)` of a tile along one side, and the cells `[input_start, input_stop)` that it reads."""

    start: int
    stop: int
    input_start: int
    input_stop: int


def tile_spans(length: int, max_tile: int, halo: int) -> list[TileSpan]:
    """Return the fewest spans of at most `max_tile` cells that cover `length` cells; sizes differ by at most 1 cell."""
    count = -(-length // max_tile)
    bounds = [length * index // count for index in range(count + 1)]
    return [
        TileSpan(start, stop, max(0, start - halo), min(length, stop + halo))
        for start, stop in itertools.pairwise(bounds)
    ]


def run_in_halo_tiles(
    run: Callable[[Tensor, int], Tensor], x_BCTHW: Tensor, max_tile: int, halo: int, cell_in: int, cell_out: int
) -> Tensor:
    """Return the result of `run(x, 0)`, computed as `run(part, tile)` for one tile after the other.

    `tile` is the index of the tile, which is the same in all videos of one size. `max_tile` and `halo` are in cells.
    """
    height, width = (side // cell_in for side in x_BCTHW.shape[-2:])
    tiles = list(itertools.product(tile_spans(height, max_tile, halo), tile_spans(width, max_tile, halo)))
    if len(tiles) == 1:
        return run(x_BCTHW, 0)
    result: Tensor | None = None
    for index, spans in enumerate(tiles):
        read_rows, read_columns = (slice(span.input_start * cell_in, span.input_stop * cell_in) for span in spans)
        part = run(x_BCTHW[..., read_rows, read_columns], index)
        if result is None:
            result = part.new_empty((*part.shape[:-2], height * cell_out, width * cell_out))
        rows, columns = (slice(span.start * cell_out, span.stop * cell_out) for span in spans)
        part_rows, part_columns = (
            slice((span.start - span.input_start) * cell_out, (span.stop - span.input_start) * cell_out)
            for span in spans
        )
        result[..., rows, columns] = part[..., part_rows, part_columns]
    assert result is not None
    return result
