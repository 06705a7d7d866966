"""Large pictures in overlapping tiles, so that the memory a network takes does not grow with the picture.

The tiles of diffusers differ from class to class (of AutoencoderTiny they are for 4 channels alone), and a last tile may be a sliver of
one latent column. Here all tiles of a picture have one size, and the weights with which neighbours are blended add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]
"""From `[1, C, T, H, W]` to another one, both sides scaled by the same factor."""


def spans(length: int, most: int, overlap: int) -> tuple[list[int], int]:
    """Starts, and the one size, of the fewest tiles of at most `most` cells that cover `length` cells; neighbours share at least `overlap`.

    One tile where that is enough. `overlap` is less than `most`.
    """
    if length <= most:
        return [0], length
    count = math.ceil(Fraction(length - overlap, most - overlap))
    size = math.ceil(Fraction(length + (count - 1) * overlap, count))
    return [(length - size) * index // (count - 1) for index in range(count)], size


def weights(length: int, starts: list[int], size: int, ramp: int) -> list[Tensor]:
    """Each tile's share of every value under it, float32 `[size]`; they rise and fall over `ramp` values and add up to 1 everywhere.

    Exactly 1 where no other tile is. The edge of the picture is no edge to be blended.
    """
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / ramp
    shares = []
    for start in starts:
        share = torch.ones(size, dtype=torch.float64)
        if start > 0:
            share = share.minimum(steps)
        if start + size < length:
            share = share.minimum(steps.flip(0))
        shares.append(share)
    total = torch.zeros(length, dtype=torch.float64)
    for start, share in zip(starts, shares, strict=True):
        total[start : start + size] += share
    return [(share / total[start : start + size]).float() for start, share in zip(starts, shares, strict=True)]


def tiled(run: Run, x_BCTHW: Tensor, most: int, overlap: int, cell: int, made: int) -> Tensor:
    """`run` over a picture or video tile by tile, in float32; `run(x)` as it is where one tile is enough.

    A cell is `cell` values of x a side and becomes `made` values a side; `most` and `overlap` of a tile are in cells.
    """
    height, width = (side // cell for side in x_BCTHW.shape[-2:])
    (rows, tall), (columns, wide) = spans(height, most, overlap), spans(width, most, overlap)
    if len(rows) == len(columns) == 1:
        return run(x_BCTHW)
    down, across = (
        weights(length * made, [start * made for start in starts], size * made, overlap * made)
        for length, starts, size in ((height, rows, tall), (width, columns, wide))
    )
    result: Tensor | None = None
    for row, share_H in zip(rows, down, strict=True):
        for column, share_W in zip(columns, across, strict=True):
            part = run(x_BCTHW[..., row * cell : (row + tall) * cell, column * cell : (column + wide) * cell]).float()
            if result is None:
                result = part.new_zeros((*part.shape[:-2], height * made, width * made))
            share_HW = (share_H[:, None] * share_W).to(part.device)
            result[..., row * made : (row + tall) * made, column * made : (column + wide) * made] += share_HW * part
    assert result is not None
    return result
