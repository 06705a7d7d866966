"""Many pictures as windows that an engine can take, each asked about alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def split_windows(count: int, size: int, least: int) -> list[tuple[int, int]]:
    """(start, end) of each window of `count` pictures: `size` each, the remainder alone if it is `least` or more, else with the one before.

    256 pictures and a remainder of at least 128 are what Cosmos Curator captions at 2 pictures a second.
    """
    edges = [*range(0, count, size), count]
    if len(edges) > 2 and edges[-1] - edges[-2] < least:
        del edges[-2]
    return list(pairwise(edges))


def window_spans_s(image_times_s: Sequence[float], duration_s: float, cuts: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """(start, end) in seconds of what each window shows: half-way between its pictures and those beside it, and the clip's ends."""
    starts = [0.0, *((image_times_s[start - 1] + image_times_s[start]) / 2 for start, _ in cuts[1:])]
    return list(zip(starts, [*starts[1:], max(duration_s, starts[-1])], strict=True))


def describe_span(span_s: tuple[float, float], duration_s: float) -> str:
    """'from 0 to 12.5 seconds of a video of 40 seconds'."""
    return f"from {span_s[0]:.4g} to {span_s[1]:.4g} seconds of a video of {duration_s:.4g} seconds"
