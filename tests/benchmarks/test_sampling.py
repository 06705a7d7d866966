"""The figures of the sampling benchmark: joins, and the summary of seeds that could not all be measured."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.sampling import joins, motion, summary
from cluster.arrays import Pixels


def steps(*changes: int) -> Pixels:
    """Return grey frames that become brighter by these numbers."""
    return np.broadcast_to(np.cumsum((0, *changes), dtype=np.uint8)[:, None, None, None], (len(changes) + 1, 2, 2, 3))


def test_joins_are_compared_with_usual_differences() -> None:
    frames = steps(3, 1, 1, 1, 3, 1, 1, 1, 6)
    assert joins(frames, 4, 8 - 4) == {"join": pytest.approx(3.0), "group_join": pytest.approx(1.0)}
    assert joins(frames, 4, 0, 8)["join"] == pytest.approx(6.0), "the largest"
    assert motion(frames) == pytest.approx(2.0)


def test_the_last_frame_joins_the_first_one() -> None:
    assert joins(steps(1, 1, 1, 1), 4, 4)["join"] == pytest.approx(4.0)


def test_unmeasured_values_are_not_within_the_bound() -> None:
    found = summary({"generated": {"moved": [0.05, math.nan, 0.2]}, "real": {"moved": [0.01]}})
    assert found["moved"] == {
        "generated": {"median": 0.125, "mean": 0.125, "values": [0.05, None, 0.2]},
        "real": {"median": 0.01, "mean": 0.01, "values": [0.01]},
        "within": pytest.approx(0.333),
    }
