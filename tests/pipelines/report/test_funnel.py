"""Sums of the funnel: they add up, agree with the ledger, and do not depend on how rows are stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ledger import ledger
from pipelines.report.batches import Batch, read_batches
from pipelines.report.causes import cause_of
from pipelines.report.funnel import COLUMNS, IN_NO_CLIP, Totals, funnel
from tests.support.report_tables import make_curation, make_rows

pytestmark = pytest.mark.slow

LABELS = ["scan", "cut", "keep", "dedup", "caption", "keep#2"]
TYPES = {"clip_index": pa.int32(), "duration_s": pa.float64(), "source_duration_s": pa.float64()}

Losses = Counter[tuple[str, str, str, str]]
"""Number of lost rows by unit, fate, step and reason."""


def totals_of(rows: list[dict[str, Any]], n_parts: int = 1) -> Totals:
    """Return the totals of rows that are divided into parts."""
    totals = Totals()
    for number in range(n_parts):
        part = rows[number::n_parts]
        columns = {name: pa.array([row.get(name) for row in part], TYPES.get(name, pa.string())) for name in COLUMNS}
        totals.add(Batch(f"part-{number}", pa.table(columns)))
    return totals


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5))
def test_losses_and_kept_clips_add_up_to_the_input(seed: int, n_sources: int, n_parts: int) -> None:
    all_rows = make_rows(n_sources, seed)
    totals = totals_of(all_rows, n_parts)
    for images in (False, True):
        rows = [row for row in all_rows if (row["kind"] == "image") == images]
        found = funnel(totals, LABELS, "cut", images)
        losses = [loss for stage in found["stages"] for loss in stage["losses"]]
        assert found["files"] == len({row["source_uid"] for row in rows})
        assert found["files"] - sum(loss["rows"] for loss in losses if loss["unit"] == "files") == len(
            {row["source_uid"] for row in rows if "clip_index" in row}
        )
        assert found["clips"] == found["kept_clips"] + sum(loss["rows"] for loss in losses if loss["unit"] == "clips")
        assert found["hours"] == pytest.approx(found["kept_hours"] + sum(loss["hours"] for loss in losses))
        if found["stages"]:
            assert found["stages"][-1]["clips"] == found["kept_clips"]
            assert found["stages"][-1]["hours"] == pytest.approx(found["kept_hours"], abs=1e-9)
        durations_s = {row["source_uid"]: row.get("source_duration_s") or 0.0 for row in rows}
        rounded = 0.5e-6 * (len(durations_s) + len(rows)) / 3600  # every duration is rounded to whole microseconds
        expected = 0.0 if images else sum(durations_s.values()) / 3600
        assert found["hours"] == pytest.approx(expected, abs=rounded + 1e-12)


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_totals_do_not_depend_on_parts(seed: int, n_sources: int) -> None:
    rows = make_rows(n_sources, seed)
    one, other = totals_of(rows), totals_of(rows[::-1], 4)
    assert one == other
    assert one.sources().sort_by("source_uid").equals(other.sources().sort_by("source_uid"))


def test_the_funnel_has_every_fate_and_reason_of_the_ledger(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows())
    totals = Totals()
    stored = [name for name in COLUMNS if name in curation.final.segment.schema.names]
    for batch in read_batches(curation.final.rows, stored):
        totals.add(batch)
    accounts = {account.level: account for account in ledger(curation)}
    assert all(account.balanced for account in accounts.values())
    videos, images = (funnel(totals, recipe.labels, "cut", flag) for flag in (False, True))
    assert (videos["files"], images["files"]) == (accounts["videos"].inputs, accounts["images"].inputs)
    assert {fate: videos["fates"][fate] + images["fates"][fate] for fate in videos["fates"]} == dict(
        accounts["clips"].fates
    )
    expected: Losses = Counter()
    for level, account in accounts.items():
        for fate, step, reason, count in account.reasons:
            cause = cause_of(fate, step, reason)
            expected["clips" if level == "clips" else "files", cause.fate, cause.step, cause.reason] += count
    found: Losses = Counter()
    for side in (videos, images):
        for stage in side["stages"]:
            for loss in stage["losses"]:
                if loss["rows"]:
                    found[loss["unit"], loss["fate"], stage["label"], loss["reason"]] += loss["rows"]
    assert found == expected
    assert IN_NO_CLIP in [loss["reason"] for stage in videos["stages"] for loss in stage["losses"]]


def test_time_in_no_clip_is_lost_at_the_cut() -> None:
    common = {"source_uid": "s", "kind": "video", "source_duration_s": 7200.0, "fate": "kept", "duration_s": 1800.0}
    rows = [
        {**common, "uid": "a", "clip_index": 0},
        {**common, "uid": "b", "clip_index": 1, "fate": "dropped", "fate_step": "keep", "fate_reason": "luma under 1"},
    ]
    found = funnel(totals_of(rows), LABELS, "cut", images=False)
    assert (found["hours"], found["kept_hours"], found["kept_clips"], found["clips"]) == (2.0, 0.5, 1, 2)
    assert [(stage["label"], stage["hours"], stage["clips"]) for stage in found["stages"][:3]] == [
        ("scan", 2.0, 0),
        ("cut", 1.0, 2),
        ("keep", 0.5, 1),
    ]
