"""The work on one task: rows, order and marks are kept, errors cost their own row, and costs are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine import tables
from pipelines.engine.step import FATES, RunError, map_rows
from pipelines.engine.worker import guarded, run_step
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split


@settings(max_examples=30)
@given(marks=st.lists(st.sampled_from(FATES), max_size=12), bad=st.sets(st.integers(0, 11)))
def test_a_step_keeps_rows_order_and_marks(marks: list[str], bad: set[int]) -> None:
    n = len(marks)
    table = pa.table(
        {
            "uid": pa.array([str(i) for i in range(n)], pa.string()),
            "number": pa.array(range(n), pa.float64()),
            "fate": pa.array(marks, pa.string()),
            "fate_step": pa.array([None if mark == "kept" else "before" for mark in marks], pa.string()),
            "fate_reason": pa.nulls(n, pa.string()),
            "fate_value": pa.nulls(n, pa.float64()),
            "fate_bound": pa.nulls(n, pa.float64()),
        }
    )

    def square(row: dict[str, Any]) -> dict[str, Any]:
        if int(row["uid"]) in bad:
            raise ValueError("bad row")
        return {"score": row["number"] ** 2}

    step = Score()
    done, n_worked = run_step(step, "score", table, lambda live: map_rows(live, step.writes(), square))
    assert n_worked == marks.count("kept")
    result = done.to_pylist()
    assert [row["uid"] for row in result] == [str(i) for i in range(n)]
    for i, (row, mark) in enumerate(zip(result, marks, strict=True)):
        if mark != "kept":
            assert (row["fate"], row["fate_step"], row["score"]) == (mark, "before", None)
        elif i in bad:
            assert (row["fate"], row["fate_step"], row["fate_reason"]) == ("failed", "score", "ValueError: bad row")
        else:
            assert (row["fate"], row["fate_step"], row["score"]) == ("kept", None, float(i) ** 2)


def test_an_error_in_a_batch_fails_the_row_at_fault() -> None:
    fates = {
        name: pa.nulls(3, kind)
        for name, kind in (("fate_reason", pa.string()), ("fate_value", pa.float64()), ("fate_bound", pa.float64()))
    }
    table = pa.table({"uid": ["a", "b", "c"], "fate": ["kept"] * 3, **fates})

    def batch(rows: pa.Table) -> pa.Table:
        if "b" in rows["uid"].to_pylist():
            raise OverflowError("too large")
        return rows.append_column("score", pa.array([1.0] * len(rows)))

    result = guarded(batch, table, Score().writes())
    assert result["fate"].to_pylist() == ["kept", "failed", "kept"]
    assert result["fate_reason"].to_pylist()[1] == "OverflowError: too large"


def test_a_run_error_ends_the_run() -> None:
    def full(rows: pa.Table) -> pa.Table:
        raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        guarded(full, pa.table({"uid": ["a", "b"]}), ())


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [False, True])
def test_parts_record_the_cost_of_each_step(tmp_path: Path, pooled: bool) -> None:
    names = ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"]
    write_toys(tmp_path, names)
    steps = [Measure(), Split(), keep(number=Bound(max=5)), Score(pooled=pooled), keep(score=Bound(max=9)), Pick()]
    split = run_segments(toy_recipe(tmp_path, steps), inline).segments[1]
    assert split.segment.labels == ("split", "keep", "score", "keep#2")
    costs = [tables.read_metadata(entry.uri) for entry in storage.list_files(split.folder, tables.PART_SUFFIX)]
    assert sum(cost["n_inputs"] for cost in costs) == len(names)
    rows = {label: sum(cost["steps"][label][0] for cost in costs) for label in split.segment.labels}
    assert rows == {"split": 6, "keep": 17, "score": 15, "keep#2": 15}
    assert all(cpu_s >= 0 and seconds > 0 for cost in costs for _, cpu_s, seconds in cost["steps"].values())
