"""Large pictures in tiles that see as far beyond their edge as the network does, so that tiles change nothing but rounding.

A network without attention or statistics over the picture computes a value from its surroundings only. Where those are all in a
tile there is nothing to blend, and no seam.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """A tile's own cells `[start, stop)`, and those it is computed from, `[seen_start, seen_stop)`."""

    start: int
    stop: int
    seen_start: int
    seen_stop: int


def spans(length: int, most: int, halo: int) -> list[Span]:
    """The fewest spans of at most `most` cells that cover `length` cells, their sizes equal but for one cell."""
    count = -(-length // most)
    bounds = [length * index // count for index in range(count + 1)]
    return [
        Span(start, stop, max(0, start - halo), min(length, stop + halo)) for start, stop in itertools.pairwise(bounds)
    ]


def in_tiles(
    run: Callable[[Tensor, int], Tensor], x_BCTHW: Tensor, most: int, halo: int, cell: int, made: int
) -> Tensor:
    """`run(part, number)` over a video tile by tile; `run(x, 0)` where one tile is enough.

    A cell is `cell` values of x a side and becomes `made` values a side; `most` and `halo` are in cells. Tiles of videos of one size have the
    same numbers.
    """
    height, width = (side // cell for side in x_BCTHW.shape[-2:])
    tiles = list(itertools.product(spans(height, most, halo), spans(width, most, halo)))
    if len(tiles) == 1:
        return run(x_BCTHW, 0)
    result: Tensor | None = None
    for number, (down, across) in enumerate(tiles):
        seen = x_BCTHW[
            ..., down.seen_start * cell : down.seen_stop * cell, across.seen_start * cell : across.seen_stop * cell
        ]
        part = run(seen, number)
        if result is None:
            result = part.new_empty((*part.shape[:-2], height * made, width * made))
        rows, columns = (
            slice((span.start - span.seen_start) * made, (span.stop - span.seen_start) * made)
            for span in (down, across)
        )
        result[..., down.start * made : down.stop * made, across.start * made : across.stop * made] = part[
            ..., rows, columns
        ]
    assert result is not None
    return result
