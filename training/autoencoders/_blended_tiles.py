"""Overlapping tiles of large frames, blended, so that the memory of a network does not grow with the frame.

The tiles of diffusers differ from class to class (those of AutoencoderTiny work with 4 channels only), and a last tile
may be only one latent column wide. Here all tiles of a frame have one size, and blending weights add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

# Sides are counted in cells, which are the latent rows and columns. A cell has `cell_in` values a side of the input and
# `cell_out` of the result: 8 and 1 for an encoder of blocks of 8 pixels.


def tile_starts(length: int, max_tile: int, overlap: int) -> tuple[list[int], int]:
    """Return the starts, and the one size, of the fewest tiles of at most `max_tile` cells that cover `length` cells.

    Neighbours share at least `overlap` cells, fewer than `max_tile`.
    """
    if length <= max_tile:
        return [0], length
    count = math.ceil(Fraction(length - overlap, max_tile - overlap))
    size = math.ceil(Fraction(length + (count - 1) * overlap, count))
    return [(length - size) * index // (count - 1) for index in range(count)], size


def blending_weights(length: int, starts: list[int], size: int, ramp: int) -> list[Tensor]:
    """Return the weight of each tile at every value under it, float32 `[size]`; the weights at a value add up to 1.

    They rise and fall over `ramp` values, except at the edges of the frame, and are exactly 1 where no other tile is.
    """
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / ramp
    weights = []
    for start in starts:
        weight = torch.ones(size, dtype=torch.float64)
        if start > 0:
            weight = weight.minimum(steps)
        if start + size < length:
            weight = weight.minimum(steps.flip(0))
        weights.append(weight)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + size] += weight
    return [(weight / total[start : start + size]).float() for start, weight in zip(starts, weights, strict=True)]


def run_in_blended_tiles(
    run: Callable[[Tensor], Tensor], x_BCTHW: Tensor, max_tile: int, overlap: int, cell_in: int, cell_out: int
) -> Tensor:
    """Return the results of `run` on tiles of a video, blended in float32; `run(x)` if one tile is enough.

    `max_tile` and `overlap` are in cells.
    """
    height, width = (side // cell_in for side in x_BCTHW.shape[-2:])
    (rows, tile_height), (columns, tile_width) = (tile_starts(side, max_tile, overlap) for side in (height, width))
    if len(rows) == len(columns) == 1:
        return run(x_BCTHW)
    row_weights, column_weights = (
        blending_weights(length * cell_out, [start * cell_out for start in starts], size * cell_out, overlap * cell_out)
        for length, starts, size in ((height, rows, tile_height), (width, columns, tile_width))
    )
    result: Tensor | None = None
    for row, weight_H in zip(rows, row_weights, strict=True):
        for column, weight_W in zip(columns, column_weights, strict=True):
            read_rows = slice(row * cell_in, (row + tile_height) * cell_in)
            read_columns = slice(column * cell_in, (column + tile_width) * cell_in)
            part = run(x_BCTHW[..., read_rows, read_columns]).float()
            if result is None:
                result = part.new_zeros((*part.shape[:-2], height * cell_out, width * cell_out))
            weight_HW = (weight_H[:, None] * weight_W).to(part.device)
            rows_out = slice(row * cell_out, (row + tile_height) * cell_out)
            columns_out = slice(column * cell_out, (column + tile_width) * cell_out)
            result[..., rows_out, columns_out] += weight_HW * part
    assert result is not None
    return result
