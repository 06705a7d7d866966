"""The cut step: spans, lengths, hashes and captions of clips."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine.step import Mark
from pipelines.steps.cut import SIGNALS, Cut, clip_hash
from pipelines.video.detailed_sample import SampleValues
from pipelines.video.shot_series import FrameSeries, ShotSeries


def shot(start: int, end: int, transition_in: str | None, transition_out: str | None) -> dict[str, Any]:
    pts = list(range(start, end, max(1, (end - start) // 50)))
    n = len(pts)
    sample = SampleValues(start, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, True)
    frames = FrameSeries(np.array(pts), np.zeros(n, np.int32), np.ones(n, np.float32), np.ones(n, np.float32))
    series = ShotSeries(start, end, Fraction(1, 100), 1.0, frames, (), (sample,))
    hashes = [{"pts": pts, "phash": pts} for pts in range(start, end, max(1, (end - start) // 5))]
    return {
        "start_pts": start,
        "end_pts": end,
        "transition_in": transition_in,
        "transition_out": transition_out,
        "crop": [0, 10, 64, 38],
        **series.to_columns(),
        "hashes": hashes,
        "thumbnails": [{"pts": k, "jpeg": str(k).encode()} for k in range(start, end, 100)],
    }


def row(*shots: tuple[int, int], kind: str = "video", base: tuple[int, int] = (1, 100)) -> dict[str, Any]:
    last = len(shots) - 1
    spans = [
        shot(start, end, "cut" if i else None, "cut" if i < last else None) for i, (start, end) in enumerate(shots)
    ]
    captions = {
        "source_caption": "the file",
        "timed_captions": [{"start_s": 1.0, "end_s": 3.0, "caption": "the middle"}],
    }
    return {
        "uid": "source",
        "kind": kind,
        "width": 64,
        "height": 48,
        "time_base_num": base[0],
        "time_base_den": base[1],
        "first_pts": shots[0][0],
        "shots": spans,
        **captions,
    }


def spans(result: Any) -> list[tuple[int, int]]:
    assert not isinstance(result, Mark)
    return [(clip["start_pts"], clip["end_pts"]) for clip in result]


def test_short_shots_give_no_clip_and_long_ones_equal_parts() -> None:
    clips = Cut(min_s=1, max_s=4).expand(row((0, 90), (90, 390), (390, 1390)))
    assert spans(clips) == [(90, 390), (390, 723), (723, 1057), (1057, 1390)]
    assert [(clip["clip_index"], clip["clip_count"], clip["shot_index"]) for clip in clips] == [
        (0, 4, 1),
        (1, 4, 2),
        (2, 4, 2),
        (3, 4, 2),
    ]  # type: ignore[index]


def test_only_transitions_are_trimmed() -> None:
    clips = Cut(min_s=1, max_s=4, trim_s=0.1).expand(row((0, 300), (300, 1100)))
    assert spans(clips) == [(0, 290), (310, 705), (705, 1100)]
    found = [(clip["transition_in"], clip["transition_out"]) for clip in clips]  # type: ignore[index]
    assert found == [(None, "cut"), ("cut", None), (None, None)]


def test_file_that_ends_in_a_transition_is_trimmed_there() -> None:
    only = row((0, 500))
    only["shots"][0] |= {"transition_in": "fade", "transition_out": "fade"}
    assert spans(Cut(min_s=1, max_s=10, trim_s=0.5).expand(only)) == [(50, 450)]


def test_clips_of_given_lengths() -> None:
    """The longest length is used as often as it fits, then the next; the last half second of the shot is in no clip."""
    clips = Cut(min_s=1, max_s=8, lengths_s=(2.0, 4.0)).expand(row((0, 1050), (1050, 1200)))
    assert spans(clips) == [(0, 400), (400, 800), (800, 1000)]
    with pytest.raises(ValueError, match="lengths_s has 20"):
        Cut(min_s=1, max_s=8, lengths_s=(20.0,))


def test_source_without_a_long_shot_is_dropped() -> None:
    assert Cut(min_s=1).expand(row((0, 50), (50, 120))) == Mark("dropped", "no shot of at least 1 s", 0.7, 1.0)


def test_image_is_one_clip() -> None:
    (clip,) = Cut().expand(row((0, 1), kind="image", base=(1, 1)))  # type: ignore[misc]
    assert (clip["start_pts"], clip["end_pts"], clip["duration_s"]) == (0, 1, 0.0)


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    base=st.sampled_from([(1, 1000), (1001, 30000), (1, 12800), (1, 24)]),
    min_s=st.floats(0.05, 3),
    ratio=st.floats(2, 10),
    trim_s=st.floats(0, 0.3),
)
def test_clips_are_inside_their_shots_and_within_the_lengths(
    lengths: list[int], base: tuple[int, int], min_s: float, ratio: float, trim_s: float
) -> None:
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    shots = list(itertools.pairwise(edges))
    result = Cut(min_s=min_s, max_s=min_s * ratio, trim_s=trim_s).expand(row(*shots, base=base))
    if isinstance(result, Mark):
        return
    unit = Fraction(*base)
    previous = 0
    for clip in result:
        start, end = clip["start_pts"], clip["end_pts"]
        assert previous <= start < end
        low, high = shots[clip["shot_index"]]
        assert low <= start < end <= high
        # Edges of equal parts are rounded to whole units, so a part may be one unit longer or shorter.
        assert float((end - start + 1) * unit) >= min_s - 1e-6
        assert float((end - start - 1) * unit) <= min_s * ratio + 1e-6
        previous = end
    assert len({clip["uid"] for clip in result}) == len(result)


def test_uids_depend_only_on_source_and_span() -> None:
    (a,) = Cut(min_s=1, max_s=10).expand(row((0, 300)))  # type: ignore[misc]
    (b,) = Cut(min_s=2, max_s=8).expand(row((0, 300)))  # type: ignore[misc]
    assert a["uid"] == b["uid"]


def test_contradicting_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="max_s 3 must be at least twice min_s 2"):
        Cut(min_s=2, max_s=3)


def test_clip_has_all_hashes_of_its_span() -> None:
    hashes = [{"pts": pts, "phash": (1 << 63) + pts} for pts in range(0, 100, 10)]
    assert np.frombuffer(clip_hash(hashes, 20, 60), "<u8").tolist() == [(1 << 63) + pts for pts in (20, 30, 40, 50)]
    assert clip_hash(hashes, 10, 11) == (10).to_bytes(7, "little") + b"\x80"


def test_span_without_a_hash_has_the_nearest_to_its_middle() -> None:
    hashes = [{"pts": pts, "phash": pts} for pts in range(0, 100, 10)]
    spans = [(31, 34), (33, 39), (94, 99), (500, 900)]
    assert [np.frombuffer(clip_hash(hashes, *span), "<u8").tolist() for span in spans] == [[30], [40], [90], [90]]


@pytest.mark.slow
@given(st.integers(1, 400), st.integers(1, 400), st.lists(st.integers(0, 400), max_size=5, unique=True).map(sorted))
def test_clips_partition_the_hashes_of_their_shot(length: int, step: int, edges: list[int]) -> None:
    """Each hash is in exactly one of the clips that cover the shot, in order."""
    hashes = [{"pts": pts, "phash": pts} for pts in range(0, length, step)]
    spans = list(itertools.pairwise(sorted({0, length, *(edge for edge in edges if edge < length)})))
    inside = [
        np.frombuffer(clip_hash(hashes, start, end), "<u8")
        for start, end in spans
        if any(start <= item["pts"] < end for item in hashes)
    ]
    assert np.concatenate(inside).tolist() == [item["phash"] for item in hashes]


def test_timed_caption_must_cover_half_of_the_clip() -> None:
    clips = Cut(min_s=1, max_s=10).expand(row((1000, 1100), (1100, 1300), (1300, 1500), (1500, 1700)))
    assert [clip["source_caption"] for clip in clips] == ["the file", "the middle", "the file", "the file"]  # type: ignore[index]
    (half,) = Cut(min_s=1, max_s=10).expand(row((1000, 1400)))  # type: ignore[misc]
    assert half["source_caption"] == "the middle"


def test_thumbnails_are_those_of_the_clip() -> None:
    clips = Cut(min_s=1, max_s=4).expand(row((0, 1000)))
    assert [clip["thumbnails"] for clip in clips] == [  # type: ignore[index]
        [b"100", b"200", b"300"],
        [b"400", b"500", b"600"],
        [b"700", b"800", b"900"],
    ]
    (first, *_) = Cut(min_s=1, max_s=4, thumbnails=1).expand(row((0, 1000)))  # type: ignore[misc]
    assert first["thumbnails"] == [b"200"]
    # A clip without one has the nearest.
    assert Cut(min_s=0.1, max_s=0.3).expand(row((0, 90)))[1]["thumbnails"] == [b"0"]  # type: ignore[index]


def test_bars_are_cropped_unless_they_are_to_be_kept() -> None:
    (cropped,) = Cut(min_s=1, max_s=10).expand(row((0, 300)))  # type: ignore[misc]
    (kept,) = Cut(min_s=1, max_s=10, bars="keep").expand(row((0, 300)))  # type: ignore[misc]
    assert (cropped["crop"], kept["crop"]) == ([0, 10, 64, 38], [0, 0, 64, 48])
    # What is stored of other pixels is not taken for the clip's.
    assert cropped["uid"] != kept["uid"]
    assert {field.name for field in SIGNALS} <= cropped.keys()
