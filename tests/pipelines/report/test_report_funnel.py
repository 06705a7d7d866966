"""Sums of the report: they add up, agree with the ledger, and do not depend on how rows are stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ledger import ledger
from pipelines.report.batches import Batch, Smallest, batches
from pipelines.report.causes import Cause, cause_of, error_class, error_message
from pipelines.report.funnel import COLUMNS, IN_NO_CLIP, Totals, funnel
from tests.support.made_tables import make_curation, make_rows

LABELS = ["scan", "cut", "keep", "dedup", "caption", "keep#2"]
TYPES = {"clip_index": pa.int32(), "duration_s": pa.float64(), "source_duration_s": pa.float64()}


def batch_of(rows: list[dict[str, Any]], part: str = "part") -> Batch:
    names = [*COLUMNS, "luma"]
    columns = {
        name: pa.array(
            [row.get(name) for row in rows], TYPES.get(name, pa.float64() if name == "luma" else pa.string())
        )
        for name in names
    }
    return Batch(part, np.arange(len(rows)), pa.table(columns))


def totals_of(rows: list[dict[str, Any]], n_parts: int = 1) -> Totals:
    totals = Totals()
    for part in range(n_parts):
        totals.add(batch_of(rows[part::n_parts], f"part-{part}"))
    return totals


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5))
def test_what_came_in_is_what_was_lost_and_what_is_kept(seed: int, n_sources: int, n_parts: int) -> None:
    rows = make_rows(n_sources, seed)
    totals = totals_of(rows, n_parts)
    for images in (False, True):
        mine = [row for row in rows if (row["kind"] == "image") == images]
        found = funnel(totals, LABELS, "cut", images)
        losses = [loss for stage in found["stages"] for loss in stage["losses"]]
        assert found["files"] == len({row["source_uid"] for row in mine})
        assert found["files"] - sum(loss["rows"] for loss in losses if loss["unit"] == "files") == len(
            {r["source_uid"] for r in mine if "clip_index" in r}
        )
        assert found["clips"] == found["kept_clips"] + sum(loss["rows"] for loss in losses if loss["unit"] == "clips")
        assert found["hours"] == pytest.approx(found["kept_hours"] + sum(loss["hours"] for loss in losses))
        if found["stages"]:
            assert found["stages"][-1]["clips"] == found["kept_clips"]
            assert found["stages"][-1]["hours"] == pytest.approx(found["kept_hours"], abs=1e-9)
        known_s = {row["source_uid"]: row.get("source_duration_s") or 0.0 for row in mine}
        rounded = 0.5e-6 * (len(known_s) + len(mine)) / 3600  # every length is taken to a whole microsecond
        assert found["hours"] == pytest.approx(sum(known_s.values()) / 3600 if not images else 0.0, abs=rounded + 1e-12)


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_sums_do_not_depend_on_parts(seed: int, n_sources: int) -> None:
    rows = make_rows(n_sources, seed)
    assert totals_of(rows) == totals_of(rows[::-1], 4)


def test_every_fate_and_reason_of_the_ledger_is_in_the_funnel(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows())
    totals = Totals()
    for batch in batches(
        curation.final.rows, [name for name in COLUMNS if name in curation.final.segment.schema.names]
    ):
        totals.add(batch)
    accounts = {account.level: account for account in ledger(curation)}
    assert all(account.balanced for account in accounts.values())
    videos, images = (funnel(totals, recipe.labels, "cut", flag) for flag in (False, True))
    assert (videos["files"], images["files"]) == (accounts["videos"].inputs, accounts["images"].inputs)
    assert {fate: videos["fates"][fate] + images["fates"][fate] for fate in videos["fates"]} == dict(
        accounts["clips"].fates
    )
    expected: Counter[tuple[str, str, str, str]] = Counter()
    for level, account in accounts.items():
        for fate, step, reason, count in account.reasons:
            cause = cause_of(fate, step, reason)
            expected["clips" if level == "clips" else "files", cause.fate, cause.step, cause.reason] += count
    found: Counter[tuple[str, str, str, str]] = Counter()
    for side in (videos, images):
        for stage in side["stages"]:
            for loss in stage["losses"]:
                if loss["rows"]:
                    found[loss["unit"], loss["fate"], stage["label"], loss["reason"]] += loss["rows"]
    assert found == expected
    assert IN_NO_CLIP in [loss["reason"] for stage in videos["stages"] for loss in stage["losses"]]


def test_a_source_longer_than_its_clips_loses_the_rest_when_it_is_cut() -> None:
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


@pytest.mark.parametrize(
    ("fate", "step", "reason", "expected"),
    [
        ("failed", "scan", "DecodeError: a.mp4: no frame", "DecodeError"),
        ("failed", "caption", 'refused caption: "I am sorry"', "refused caption"),
        ("failed", "scan", "no colon here", "no colon here"),
        ("duplicate", "dedup", "near-duplicate of a clip of x.mp4", "near-duplicate"),
        ("dropped", "keep", "motion under 0.02", "motion under 0.02"),
        ("dropped", "keep#2", "motion under 0.02", "motion under 0.02"),
        (
            "dropped",
            "encode",
            "0.52 s is shorter than 2.00 s, the duration of 17 frames at 8 fps",
            "… s is shorter than … s, the duration of 17 frames at 8 fps",
        ),
        ("kept", "", "", ""),
    ],
)
def test_reasons_are_told_in_kinds(fate: str, step: str, reason: str, expected: str) -> None:
    assert cause_of(fate, step, reason) == Cause(fate, step, expected)


def test_an_error_is_its_class_and_its_message() -> None:
    assert (error_class("OSError: a: b"), error_message("OSError: a: b")) == ("OSError", "a: b")
    assert (error_class("<b>x</b>: y"), error_message("<b>x</b>: y")) == ("<b>x</b>: y", "<b>x</b>: y")


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 10**6)), min_size=1, max_size=60, unique_by=lambda item: item[1]
    ),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_the_first_rows_by_a_key_are_those_of_a_sort(items: list[tuple[int, int]], size: int, n_parts: int) -> None:
    rows = [{"uid": f"{uid:07d}", "luma": float(key), "fate": "kept", "kind": "video"} for key, uid in items]
    smallest = Smallest(size)
    uid_at = {}
    for part in range(n_parts):
        batch = batch_of(rows[part::n_parts], f"part-{part}")
        uid_at.update({(batch.part, i): uid for i, uid in enumerate(batch.uids.tolist())})
        smallest.add(batch, np.ones(len(batch), np.bool_), batch.floats("luma"))
    expected = [f"{uid:07d}" for _, uid in sorted(items)[:size]]
    assert [uid_at[place] for place in smallest.places] == expected
