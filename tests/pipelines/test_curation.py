"""The engine on toy steps: rows neither lost nor doubled, nothing done twice, whatever happens in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from pipelines import inline
from pipelines.curation import Curation, run_segments, inspect
from pipelines.engine import tables
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import FATES, RunError, Step, map_rows
from pipelines.engine.worker import Job, guarded, run_step
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from pipelines.steps.keep import Bound, Keep
from tests.support.toy_steps import Measure, Pick, Score, Split


def keep(**bounds: Bound) -> Keep:
    return Keep(name="keep", **bounds)  # type: ignore[arg-type]


def make_recipe(folder: Path, steps: list[Step]) -> Recipe:
    return Recipe(
        name="toy",
        out=str(folder / "out"),
        sources=(SourceSettings(videos=str(folder / "in" / "*.toy")),),
        curate=tuple(steps),
    )


def make_sources(folder: Path, names: list[str]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    for name in names:
        (folder / "in" / f"{name}.toy").write_text(name)


def steps_of(calls: str | None = None, max_score: float = 9.0, **score: Any) -> list[Step]:
    return [
        Measure(calls=calls and calls + ".measure"),
        Split(),
        keep(number=Bound(max=5)),
        Score(calls=calls and calls + ".score", **score),
        keep(score=Bound(max=max_score)),
        Pick(),
    ]


def content(curation: Curation) -> list[dict[str, Any]]:
    return curation.final.rows.read().to_pylist()


def calls_of(path: str) -> list[str]:
    return Path(path).read_text().split() if Path(path).exists() else []


NAMES = ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"]


def test_every_input_has_one_fate_and_the_ledger_balances(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    curation = run_segments(make_recipe(tmp_path, steps_of()), inline)
    videos, images, clips = ledger(curation)
    assert (videos.inputs, dict(videos.fates)) == (6, {"kept": 4, "dropped": 1, "failed": 1, "duplicate": 0})
    assert images.inputs == 0
    # 17 clips of 3 + 8 + 1 + 5; number > 5 drops 2 of c; score > 9 drops those numbered 4 and 5 (c) and 4 (e); of numbers 0 to 3 one each stays
    assert (clips.inputs, dict(clips.fates)) == (17, {"kept": 4, "dropped": 5, "failed": 0, "duplicate": 8})
    assert all(account.balanced for account in (videos, images, clips))
    rows = {(Path(row["source"]).stem, row["clip_index"]): row for row in content(curation)}
    assert rows["broken-1", None]["fate_reason"] == "OSError: cannot be decoded"
    assert (rows["broken-1", None]["fate"], rows["broken-1", None]["fate_step"]) == ("failed", "measure")
    assert rows["b-0", None]["fate"] == "dropped"
    late = rows["c-8", 7]
    assert (late["fate_step"], late["fate_value"], late["fate_bound"], late["score"]) == ("keep", 7.0, 5.0, None)
    assert rows["c-8", 4]["fate_step"] == "keep#2"
    assert rows["c-8", 4]["score"] == 16.0


def test_a_rerun_does_nothing(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path, steps_of(str(tmp_path / "calls")))
    first = run_segments(recipe, inline)
    files = {entry.uri: entry.version for entry in storage.list_files(recipe.tables_uri)}
    before = calls_of(str(tmp_path / "calls.measure"))

    def refuse(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        raise AssertionError("nothing is left to do")

    again = run_segments(recipe, refuse)
    assert content(again) == content(first)
    assert {entry.uri: entry.version for entry in storage.list_files(recipe.tables_uri)} == files
    assert calls_of(str(tmp_path / "calls.measure")) == before
    assert inspect(recipe).complete


def test_a_changed_threshold_measures_nothing_again(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    run_segments(make_recipe(tmp_path, steps_of(calls)), inline)
    measured, scored = calls_of(calls + ".measure"), calls_of(calls + ".score")
    changed = run_segments(make_recipe(tmp_path, steps_of(calls, max_score=4.0)), inline)
    assert calls_of(calls + ".measure") == measured
    assert calls_of(calls + ".score") == scored, "scores under the same settings are reused"
    assert sum(row["fate"] == "kept" for row in content(changed)) == 3


def test_a_looser_threshold_scores_only_the_new_rows(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    run_segments(make_recipe(tmp_path, steps_of(calls)), inline)
    scored = calls_of(calls + ".score")
    steps = steps_of(calls)
    steps[2] = keep(number=Bound(max=6))
    run_segments(make_recipe(tmp_path, steps), inline)
    assert len(calls_of(calls + ".score")) == len(scored) + 1  # only the clip numbered 6


def test_changed_settings_of_a_step_are_not_reused(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    run_segments(make_recipe(tmp_path, steps_of(calls)), inline)
    scored = calls_of(calls + ".score")
    run_segments(make_recipe(tmp_path, steps_of(calls, power=1.0)), inline)
    assert len(calls_of(calls + ".score")) == 2 * len(scored)
    assert len(calls_of(calls + ".measure")) == len(NAMES)


def test_a_new_file_is_the_only_one_measured_and_decides_anew_with_all(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    recipe = make_recipe(tmp_path, steps_of(calls))
    run_segments(recipe, inline)
    measured = calls_of(calls + ".measure")
    make_sources(tmp_path, ["new-2"])
    grown = run_segments(recipe, inline)
    assert len(calls_of(calls + ".measure")) == len(measured) + 1
    whole = tmp_path / "whole"
    whole.mkdir()
    straight = run_segments(recipe.model_copy(update={"out": str(whole)}), inline)
    assert content(grown) == content(straight)


def test_a_removed_file_leaves_the_result(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path, steps_of())
    run_segments(recipe, inline)
    (tmp_path / "in" / "c-8.toy").unlink()
    rows = content(run_segments(recipe, inline))
    assert "c-8" not in {Path(row["source"]).stem for row in rows}
    assert len(rows) == 3 + 1 + 1 + 1 + 5


def test_a_second_global_step_leaves_what_the_first_decided_of_marked_rows(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    once = content(run_segments(make_recipe(tmp_path, steps_of()), inline))
    twice = content(run_segments(make_recipe(tmp_path, [*steps_of(), Pick()]), inline))
    assert "duplicate" in {row["fate"] for row in once}
    assert twice == once


def test_a_part_says_what_each_step_cost_whoever_did_it(tmp_path: Path) -> None:
    make_sources(tmp_path, NAMES)
    states = run_segments(make_recipe(tmp_path, steps_of(pooled=True)), inline).segments
    split = states[1]
    assert split.segment.labels == ("split", "keep", "score", "keep#2")
    costs = [tables.read_metadata(entry.uri) for entry in storage.list_files(split.folder, tables.PART_SUFFIX)]
    assert sum(cost["n_inputs"] for cost in costs) == len(NAMES)
    rows = {label: sum(cost["steps"][label][0] for cost in costs) for label in split.segment.labels}
    assert rows == {"split": 6, "keep": 17, "score": 15, "keep#2": 15}
    assert all(cpu_s >= 0 and seconds > 0 for cost in costs for _, cpu_s, seconds in cost["steps"].values())


class _Stop(Exception):
    pass


@pytest.mark.parametrize("after", range(8))
def test_stopped_anywhere_a_rerun_ends_as_if_undisturbed(tmp_path: Path, after: int) -> None:
    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path, steps_of())
    done = itertools.count()

    def stops(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        for report in inline.run_tasks(job, tasks):
            if next(done) == after:
                raise _Stop
            yield report

    with pytest.raises(_Stop):
        run_segments(recipe, SimpleNamespace(run_tasks=stops, rows=inline.rows))
    assert not inspect(recipe).complete
    resumed = content(run_segments(recipe, inline))
    uids = [row["uid"] for row in resumed]
    assert len(uids) == len(set(uids))
    undisturbed = recipe.model_copy(update={"out": str(tmp_path / "undisturbed")})
    assert resumed == content(run_segments(undisturbed, inline))


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


def test_a_function_that_fails_on_a_batch_costs_only_the_row_at_fault() -> None:
    fates = {
        name: pa.nulls(3, kind)
        for name, kind in (("fate_reason", pa.string()), ("fate_value", pa.float64()), ("fate_bound", pa.float64()))
    }
    table = pa.table({"uid": ["a", "b", "c"], "fate": ["kept"] * 3, **fates})

    def batch(rows: pa.Table) -> pa.Table:
        if "b" in rows["uid"].to_pylist():
            raise MemoryError("too large")
        return rows.append_column("score", pa.array([1.0] * len(rows)))

    result = guarded(batch, table, Score().writes())
    assert result["fate"].to_pylist() == ["kept", "failed", "kept"]
    assert result["fate_reason"].to_pylist()[1] == "MemoryError: too large"


def test_a_fault_that_is_no_rows_ends_the_run() -> None:
    def full(rows: pa.Table) -> pa.Table:
        raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        guarded(full, pa.table({"uid": ["a", "b"]}), ())


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [False, True])
def test_ray_writes_the_tables_that_the_inline_runner_writes(tmp_path: Path, ray_session: None, pooled: bool) -> None:
    from pipelines import run

    make_sources(tmp_path, NAMES)
    recipe = make_recipe(tmp_path, steps_of(pooled=pooled))
    elsewhere = recipe.model_copy(update={"out": str(tmp_path / "elsewhere")})
    by_ray, by_hand = run_segments(recipe, run), run_segments(elsewhere, inline)
    for one, other in zip(by_ray.segments, by_hand.segments, strict=True):
        assert one.segment.fingerprint == other.segment.fingerprint
        assert one.rows.read().equals(other.rows.read())


@pytest.mark.slow
def test_a_row_that_kills_its_worker_costs_no_other_row(tmp_path: Path, ray_session: None) -> None:
    from pipelines import run

    make_sources(tmp_path, [*NAMES, "crash-1"])
    rows = content(run_segments(make_recipe(tmp_path, steps_of()), run))
    crashed = [row for row in rows if Path(row["source"]).stem == "crash-1"]
    assert [(row["fate"], row["fate_step"]) for row in crashed] == [("failed", "measure")]
    assert "WorkerDied" in crashed[0]["fate_reason"]
    assert sum(row["fate"] == "failed" for row in rows) == 2
    assert sum(row["clip_index"] is not None for row in rows) == 17
