from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.dialogue.windows import describe_span, window_spans_s, split_windows


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(0, 1)]),
        (256, [(0, 256)]),
        (257, [(0, 257)]),
        (383, [(0, 383)]),
        (384, [(0, 256), (256, 384)]),
        (512, [(0, 256), (256, 512)]),
        (639, [(0, 256), (256, 639)]),
        (640, [(0, 256), (256, 512), (512, 640)]),
    ],
)
def test_of_256_with_128_at_least(count: int, expected: list[tuple[int, int]]) -> None:
    assert split_windows(count, 256, 128) == expected


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_picture_once_and_none_is_short(count: int, size: int, least: int) -> None:
    least = min(least, size)
    found = split_windows(count, size, least)
    assert [i for start, end in found for i in range(start, end)] == list(range(count))
    assert all(end - start == size for start, end in found[:-1])
    if len(found) > 1:
        assert least <= found[-1][1] - found[-1][0] < size + least


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50, unique=True), st.integers(1, 10))
def test_spans_cover_the_clip_without_gaps_and_hold_their_pictures(times: list[float], size: int) -> None:
    image_times_s, duration_s = sorted(times), 101.0
    cuts = split_windows(len(image_times_s), size, 1)
    spans = window_spans_s(image_times_s, duration_s, cuts)
    assert (spans[0][0], spans[-1][1]) == (0.0, duration_s)
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    for (start, end), (start_s, end_s) in zip(cuts, spans, strict=True):
        assert all(start_s <= at <= end_s for at in image_times_s[start:end])


def test_words() -> None:
    assert describe_span((0.0, 12.5), 40.0) == "from 0 to 12.5 seconds of a video of 40 seconds"
