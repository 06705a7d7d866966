"""The chart of the loss."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.tracking.loss_curve import MAX_POINTS, loss_curve, running_mean, ticks

SVG = "{http://www.w3.org/2000/svg}"


def test_the_chart_is_valid_and_has_both_losses() -> None:
    train = [(step, 1 + 1 / step) for step in range(1, 301)]
    root = ElementTree.fromstring(loss_curve(train, [(100, 1.2), (300, 1.1)]))
    assert len(root.findall(f"{SVG}circle")) == 2
    assert [text.text for text in root.iter(f"{SVG}text") if text.text and "loss" in text.text] == [
        "training loss, running mean",
        "validation loss",
    ]


@pytest.mark.parametrize("train", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 1e9), (2, 1e-9)]])
def test_extreme_runs_can_be_drawn(train: list[tuple[int, float]]) -> None:
    chart = loss_curve(train, [])
    ElementTree.fromstring(chart)
    assert "nan" not in chart


def test_long_runs_are_thinned_and_keep_their_end() -> None:
    train = [(step, 1.0) for step in range(1, 50_000)]
    root = ElementTree.fromstring(loss_curve(train, []))
    longest = max((line.get("points", "").split() for line in root.iter(f"{SVG}polyline")), key=len)
    assert len(longest) <= MAX_POINTS + 1
    assert longest[-1].startswith("704.0,")


def test_a_run_without_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="no step has been recorded"):
        loss_curve([], [])


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 9
    assert all(low - 1e-6 * width <= tick <= low + width + 1e-6 * width for tick in found)


def test_the_running_mean_is_over_the_window() -> None:
    points = [(step, float(step)) for step in range(1, 21)]
    smooth = running_mean(points)
    assert smooth[0] == (1, 1.0)
    assert smooth[-1][1] == pytest.approx(math.fsum(range(16, 21)) / 5)
