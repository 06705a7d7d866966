"""Audits of models as data of the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import storage
from pipelines.report.audits import MAX_PAIRS, audits
from tests.support.report_runs import write_audit
from tests.support.report_tables import make_curation, make_rows

pytestmark = pytest.mark.slow


def test_the_newest_audit_is_first(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(8))
    assert audits(recipe, curation) == []
    kept = [str(row["uid"]) for row in make_rows(8) if row["fate"] == "kept"]
    for name, when in (("old", 1), ("new", 2)):
        write_audit(recipe.out_uri, name, [f"{kept[0]}.w2-17", kept[0], "gone"], "a red star")
        os.utime(storage.join(recipe.out_uri, "audit", name, "summary.json"), (when, when))
    first, second = audits(recipe, curation)
    assert (first["name"], second["name"]) == ("new", "old")
    assert first["model"] == "run-1/export"
    assert (first["n_flagged"], first["flagged"][0]["caption"]) == (2, "a red star")
    content, recall = first["tests"]["content"], first["tests"]["recall"]
    assert (content["n_flagged"], content["values"][:2]) == (2, [0.04, 0.08])
    assert recall["pairs"] == []
    pairs = content["pairs"]
    assert [one["ratio"] for one in pairs] == content["values"][:MAX_PAIRS]
    assert pairs[0]["video"] == "audit/new/generated/clip_000-0.mp4"
    assert pairs[0]["training_video"] == f"audit/new/training/{kept[0]}.w2-17.mp4"
    assert pairs[0]["prompt"] == "a red star"
    assert {one["video"] for one in pairs[1:]} == {None}, "their files are gone"
    for one in pairs:
        assert bool(one["images"]) == (one["training"] != "gone")
