"""Thresholds of the page: dropped clips, nearest clips and yields, against counts of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.report.whatif import whatif
from tests.support.report_tables import clips_of, make_curation

pytestmark = pytest.mark.slow


def test_thresholds_have_dropped_and_nearest_clips(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    table = data["rows"]["table"]
    assert [(item["column"], item["side"]) for item in data["thresholds"]] == [
        ("luma", "min"),
        ("luma", "max"),
        ("motion", "min"),
        ("camera", "in"),
        ("sharpness", "min"),
    ]
    for item in data["thresholds"]:
        column, limit = item["column"], item["limit"]
        reason = "camera is" if limit is None else f"{column} {item['condition']}"
        dropped = [row for row in clips_of(rows) if (row.get("fate_reason") or "").startswith(reason)]
        hours = sum(row["duration_s"] for row in dropped) / 3600
        assert (item["dropped"], item["hours"]) == (len(dropped), pytest.approx(hours))
        if limit is None:
            continue
        kept = [row for row in rows if row["fate"] == "kept" and row.get(column) is not None]
        for fate, candidates in (("dropped", dropped), ("kept", kept)):
            nearest = item["nearest"][fate]
            expected = sorted((abs(row[column] - limit), row["uid"]) for row in candidates)[: len(nearest)]
            assert [table["uid"][i] for i in nearest] == [uid for _, uid in expected]
            assert len(nearest) == min(6, len(candidates))


def is_kept_with(row: dict[str, Any], limits: dict[tuple[str, str], float], column: str) -> bool:
    """Return whether the recipe with these limits, by column and side, keeps a clip that has a value of `column`."""
    if row["fate"] == "duplicate" or row[column] is None or row["camera"] not in (None, "still", "pan"):
        return False
    return all(
        row[name] is None or (row[name] >= limit if side == "min" else row[name] <= limit)
        for (name, side), limit in limits.items()
    )


def test_yields_are_those_of_whatif_and_of_counting(
    rows: list[dict[str, Any]], data: dict[str, Any], tmp_path: Path
) -> None:
    recipe, curation = make_curation(tmp_path, rows)
    curves = {
        (curve.label, curve.column, curve.side): curve.points for curve in whatif(curation, recipe, recipe).curves
    }
    thresholds = {(item["label"], item["column"], item["side"]): item for item in data["thresholds"]}
    assert set(curves) == set(thresholds) - {("keep", "camera", "in")}
    assert thresholds["keep", "camera", "in"]["yields"] == []
    limits = {(column, side): item["limit"] for (_, column, side), item in thresholds.items() if side != "in"}
    for (label, column, side), points in curves.items():
        yields = thresholds[label, column, side]["yields"]
        assert yields == [
            (pytest.approx(limit, rel=1e-4), total.clips, pytest.approx(total.hours)) for limit, total in points
        ]
        for limit, total in points:
            kept = [row for row in clips_of(rows) if is_kept_with(row, {**limits, (column, side): limit}, column)]
            hours = sum(row["duration_s"] for row in kept) / 3600
            assert (total.clips, total.hours) == (len(kept), pytest.approx(hours))
        current = thresholds[label, column, side]["limit"]
        kept = [row for row in clips_of(rows) if row["fate"] == "kept" and row[column] is not None]
        assert next(clips for limit, clips, _ in yields if limit == current) == len(kept), "the current threshold"
