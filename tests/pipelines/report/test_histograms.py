"""Histograms of the page against counts of the rows, and axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.report.histograms import make_axis
from tests.support.report_tables import clips_of


@pytest.mark.slow
def test_histograms_count_every_clip_once(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    names = [item["name"] for item in data["histograms"]]
    assert names[:4] == ["luma", "motion", "camera", "sharpness"], "thresholds come first, in the recipe's order"
    clips = clips_of(rows)
    for item in data["histograms"][:4]:
        measured = [row for row in clips if row[item["name"]] is not None]
        here = [row for row in measured if row["fate"] == "dropped" and row["fate_reason"].startswith(item["name"])]
        kept = [row for row in measured if row["fate"] == "kept"]
        lost_elsewhere = len(measured) - len(kept) - len(here)
        assert [sum(counts) for counts in item["counts"]] == [len(kept), len(here), lost_elsewhere]
        assert item["missing"] == len(clips) - len(measured)


@pytest.mark.slow
def test_counts_are_those_of_numpy(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    item = next(item for item in data["histograms"] if item["name"] == "luma")
    values = np.array([row["luma"] for row in clips_of(rows)])
    edges = np.array(item["edges"])
    expected = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], 0)), edges)[0]
    # Edges on the page have five digits.
    assert np.abs(np.array(item["counts"]).sum(0) - expected).sum() <= 2
    assert {0.1, 0.9} <= set(item["edges"]), "an edge on each threshold"


@pytest.mark.slow
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.lists(st.floats(-1e3, 1e3), max_size=3))
@example([5e-324], [])
@example([0.0], [5e-324])
@example([1.0, 1.0 + 2**-52], [1.0])
def test_an_axis_rises_with_an_edge_on_every_threshold(values: list[float], thresholds: list[float]) -> None:
    axis = make_axis(np.sort(np.array(values)), thresholds)
    assert (np.diff(axis.edges) > 0).all()
    assert all(np.isclose(axis.edges, threshold, rtol=1e-12, atol=1e-12).any() for threshold in thresholds)
    bin_N, valid_N = axis.bins_of(np.array([*values, np.nan]))
    assert valid_N.tolist() == [True] * len(values) + [False]
    assert bin_N.min() >= 0
    assert bin_N.max() < len(axis.edges) - 1


def test_a_skewed_column_gets_a_logarithmic_axis() -> None:
    values = np.sort(np.random.default_rng(0).lognormal(-4, 1.5, 2000))
    axis = make_axis(values, [0.01])
    assert axis.is_log
    assert 0.01 in axis.edges.tolist()
    assert not make_axis(np.linspace(0, 1, 100), [0.5]).is_log


def test_a_whole_bin_lies_beyond_a_threshold_near_the_end() -> None:
    inside = np.linspace(0.1, 0.9, 100)
    axis = make_axis(np.concatenate([[0.049] * 3, inside, [0.951] * 3]), [0.05, 0.95])
    widths = np.diff(axis.edges)
    assert widths[0] > 0.8 * widths[1]
    assert widths[-1] > 0.8 * widths[-2]
