"""Values computed under other settings in the same `out`: reused where nothing they depend on has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import inline
from pipelines.curation import Curation, run_segments
from pipelines.engine.step import Step
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import final_rows, keep, logged_calls, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split

pytestmark = pytest.mark.slow

NAMES = ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"]


class Toys:
    """A folder of toy sources, and the calls of the steps `measure` and `score` on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        write_toys(folder, NAMES)

    def run(self, max_number: float = 5, max_score: float = 9, **score: Any) -> Curation:
        steps: list[Step] = [
            Measure(calls=str(self._folder / "measure")),
            Split(),
            keep(number=Bound(max=max_number)),
            Score(calls=str(self._folder / "score"), **score),
            keep(score=Bound(max=max_score)),
            Pick(),
        ]
        return run_segments(toy_recipe(self._folder, steps), inline)

    @property
    def n_measured(self) -> int:
        return len(logged_calls(self._folder / "measure"))

    @property
    def n_scored(self) -> int:
        return len(logged_calls(self._folder / "score"))


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    toys = Toys(tmp_path)
    toys.run()
    assert (toys.n_measured, toys.n_scored) == (6, 15)
    return toys


def test_a_changed_threshold_measures_nothing_again(toys: Toys) -> None:
    changed = toys.run(max_score=4)
    assert (toys.n_measured, toys.n_scored) == (6, 15)
    assert sum(row["fate"] == "kept" for row in final_rows(changed)) == 3


def test_a_looser_threshold_scores_only_new_rows(toys: Toys) -> None:
    toys.run(max_number=6)
    assert toys.n_scored == 15 + 1, "only the clip numbered 6 is new"


def test_changed_settings_of_a_step_are_not_reused(toys: Toys) -> None:
    toys.run(power=1.0)
    assert (toys.n_measured, toys.n_scored) == (6, 2 * 15)
