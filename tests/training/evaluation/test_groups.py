"""Groups of clips are counted by what clips show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.evaluation.groups import LEVELS, group_counts
from training.evaluation.main_colour import main_colour
from training.evaluation.metric import Case
from training.evaluation.results import ClipResult, ClipSet


def clip(clip_set: ClipSet, motion: float, **found: Any) -> ClipResult:
    return ClipResult(clip_set, "a", "a ball", None, "", found, {"motion_amount": (Case(motion),)})


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 20, 30), "red"),
        ((230, 30, 20), "red"),
        ((240, 130, 20), "orange"),
        ((240, 230, 30), "yellow"),
        ((30, 160, 60), "green"),
        ((30, 200, 200), "cyan"),
        ((20, 40, 200), "blue"),
        ((130, 40, 180), "purple"),
        ((250, 120, 190), "pink"),
        ((10, 10, 10), "black"),
        ((128, 128, 120), "grey"),
        ((255, 255, 255), "white"),
    ],
)
def test_main_colours_have_common_names(rgb: tuple[int, int, int], name: str) -> None:
    assert main_colour(np.full((3, 20, 30, 3), rgb, np.uint8)) == name


def test_the_main_colour_is_that_of_most_colour() -> None:
    frames = np.full((40, 200, 300, 3), (200, 200, 196), np.uint8)
    frames[:, :100] = (20, 40, 200)
    frames[:, 100:120] = (220, 20, 30)
    assert main_colour(frames) == "blue"


def test_measures_are_counted_by_fifths_of_real_clips() -> None:
    results = [clip("real", value) for value in range(10)] + [clip("generated", 9.5) for _ in range(4)]
    results += [clip("generated", -1.0), clip("null", 3.0)]
    (group,) = group_counts(results)
    assert group["labels"] == list(LEVELS)
    assert group["counts"] == {"real": [2, 2, 2, 2, 2], "generated": [1, 0, 0, 0, 4]}


def test_shapes_are_counted_and_null_clips_are_not() -> None:
    results = [
        clip("real", 1.0, main_colour="blue", background="cream", camera=None, bodies=["red star", "blue shape"]),
        clip("generated", 1.0, main_colour="red", background="mint green", camera="still", bodies=[]),
        clip("generated", 1.0, main_colour="red", background="cream", camera="still", bodies=["red star"]),
        clip("null", 1.0, main_colour="pink", background="cream", camera="still", bodies=["red star"]),
    ]
    groups = {group["name"]: group for group in group_counts(results)}
    assert groups["main_colour"]["labels"] == ["red", "blue"]
    assert groups["main_colour"]["counts"] == {"real": [0, 1], "generated": [2, 0]}
    assert groups["background"]["counts"] == {"real": [1, 0], "generated": [1, 1]}
    assert groups["shape_forms"]["labels"] == ["not told", "star"]
    assert groups["n_shapes"] == {
        "name": "n_shapes",
        "title": "Number of shapes",
        "labels": ["0", "1", "2"],
        "counts": {"real": [0, 0, 1], "generated": [1, 1, 0]},
    }
    assert "camera" not in groups, "no camera of a real clip is known"
