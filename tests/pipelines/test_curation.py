"""Curation on toy steps: no row is lost or doubled and nothing is done twice, whatever happens in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import storage
from pipelines import inline
from pipelines.curation import Inputs, inspect, run_segments
from pipelines.engine.step import Step
from pipelines.engine.worker import Job
from pipelines.steps.keep import Bound
from tests.support.executors import IdleExecutor, InlineExecutor
from tests.support.toy_recipes import final_rows, keep, logged_calls, toy_file, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split

pytestmark = pytest.mark.slow

NAMES = ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"]


def toy_steps(calls: Path | None = None) -> list[Step]:
    """Return a step of every contract; `Measure` logs its calls to the file."""
    return [
        Measure(calls=str(calls) if calls else None),
        Split(),
        keep(number=Bound(max=5)),
        Score(),
        keep(score=Bound(max=9)),
        Pick(),
    ]


def test_a_finished_curation_has_no_work(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = tmp_path / "calls"
    recipe = toy_recipe(tmp_path, toy_steps(calls))
    first = run_segments(recipe, inline)
    files = {entry.uri: entry.version for entry in storage.list_files(recipe.tables_uri)}
    assert len(logged_calls(calls)) == len(NAMES)
    again = run_segments(recipe, IdleExecutor())
    assert final_rows(again) == final_rows(first)
    assert {entry.uri: entry.version for entry in storage.list_files(recipe.tables_uri)} == files
    assert len(logged_calls(calls)) == len(NAMES)
    assert inspect(recipe).complete


def test_an_unfinished_curation_needs_its_executor(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    with pytest.raises(AssertionError, match="measure has 6 tasks, but everything was done"):
        run_segments(toy_recipe(tmp_path, toy_steps()), IdleExecutor())


def test_only_a_new_file_is_measured(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = tmp_path / "calls"
    recipe = toy_recipe(tmp_path, toy_steps(calls))
    run_segments(recipe, inline)
    measured = logged_calls(calls)
    write_toys(tmp_path, ["new-2"])
    grown = run_segments(recipe, inline)
    assert len(logged_calls(calls)) == len(measured) + 1
    # The global step decides over old and new rows together.
    straight = run_segments(toy_recipe(tmp_path, toy_steps(calls), out="straight"), inline)
    assert final_rows(grown) == final_rows(straight)


def test_a_removed_file_has_no_rows(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path, toy_steps())
    run_segments(recipe, inline)
    toy_file(tmp_path, "c-8").unlink()
    rows = final_rows(run_segments(recipe, inline))
    assert "c-8" not in {Path(row["source"]).stem for row in rows}
    assert len(rows) == 3 + 1 + 1 + 1 + 5


class PickAgain(Pick):
    """A step that picks once more, with a setting, since recipes refuse a step that repeats another as it is."""

    again: bool = True


def test_a_second_global_step_skips_marked_rows(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    once = final_rows(run_segments(toy_recipe(tmp_path, toy_steps()), inline))
    twice = final_rows(run_segments(toy_recipe(tmp_path, [*toy_steps(), PickAgain()]), inline))
    assert "duplicate" in {row["fate"] for row in once}
    assert twice == once


class _Stop(Exception):
    pass


class StoppingExecutor(InlineExecutor):
    """An executor that stops after a number of tasks, counted over all segments."""

    def __init__(self, n_tasks: int) -> None:
        self._n_tasks, self._done = n_tasks, itertools.count()

    def run_tasks(self, job: Job, tasks: list[pa.Table], /) -> Iterator[pa.Table]:
        for report in inline.run_tasks(job, tasks):
            if next(self._done) == self._n_tasks:
                raise _Stop
            yield report


@pytest.mark.parametrize("n_tasks", range(8))
def test_a_stopped_curation_resumes(tmp_path: Path, n_tasks: int) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path, toy_steps())
    with pytest.raises(_Stop):
        run_segments(recipe, StoppingExecutor(n_tasks))
    assert not inspect(recipe).complete
    resumed = final_rows(run_segments(recipe, inline))
    uids = [row["uid"] for row in resumed]
    assert len(uids) == len(set(uids))
    undisturbed = toy_recipe(tmp_path, toy_steps(), out="undisturbed")
    assert resumed == final_rows(run_segments(undisturbed, inline))


def test_footage_may_be_in_the_folder_of_the_run(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, [Measure()])
    inside = recipe.model_copy(
        update={"sources": (recipe.sources[0].model_copy(update={"videos": f"{recipe.out}/in/*.toy"}),)}
    )
    storage.write_bytes(f"{recipe.out_uri}/in/a-3.toy", b"a")
    assert len(run_segments(inside, inline).sources) == 1


def test_the_digest_of_inputs_is_that_of_their_sorted_uids() -> None:
    uids = [f"{i * 7919 % 100_003:x}" for i in range(70_000)]
    sources = pa.table({"uid": pa.chunked_array([uids[:9], uids[9:]])})
    assert Inputs(sources).digest() == storage.digest(*sorted(uids))
