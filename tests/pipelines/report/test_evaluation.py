"""Evaluations as data of the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import storage
from pipelines.report.evaluation import MAX_NEAREST, evaluations
from tests.support.report_runs import write_evaluation
from tests.support.report_tables import make_curation, make_rows

pytestmark = pytest.mark.slow


def test_the_newest_evaluation_is_first(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(8))
    assert evaluations(recipe, curation) == []
    kept = [str(row["uid"]) for row in make_rows(8) if row["fate"] == "kept"]
    for name, when in (("old", 1), ("new", 2)):
        write_evaluation(recipe.out_uri, name, [f"{kept[0]}.w2-17", kept[0], "gone"], "a red star")
        os.utime(storage.join(recipe.out_uri, "evaluation", name, "summary.json"), (when, when))
    first, second = evaluations(recipe, curation)
    assert (first["name"], second["name"]) == ("new", "old")
    assert first["model"] == "run-1/export"
    (group,) = first["groups"]
    assert group["distances"]["generated"]["distance"] == pytest.approx(50 / 60 - 30 / 60, abs=1e-4)
    found = first["memorisation"]
    assert found["generated"] == sorted(found["generated"])
    ratios = [one["ratio"] for one in found["nearest"]]
    assert ratios == found["generated"][:MAX_NEAREST]
    assert found["nearest"][0]["prompt"] == "a red star"
    assert found["nearest"][0]["video"].startswith("evaluation/new/generated/clip_")
    assert {one["video"] for one in found["nearest"][1:]} == {None}, "their files are gone"
    for one in found["nearest"]:
        assert bool(one["images"]) == (one["training"] != "gone")
