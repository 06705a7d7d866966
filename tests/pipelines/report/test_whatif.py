"""The yield of other thresholds against runs with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ConfigError
from pipelines import inline
from pipelines.curation import inspect, run_segments
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.recipe import Recipe
from pipelines.report.whatif import OPEN, ClipTotal, Comparison, Ends, FateChange, violates, whatif
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import final_rows, keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split

pytestmark = pytest.mark.slow

NAMES = ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"]


def two_thresholds(number: float = 5, score: float = 9, last: Step | None = None, power: float = 2.0) -> list[Step]:
    """Return steps with a threshold on the number and one on the score, and an optional last step."""
    return [
        Measure(),
        Split(),
        keep(number=Bound(max=number)),
        Score(power=power),
        keep(score=Bound(max=score)),
        *([last] if last else []),
    ]


def run_recipe(folder: Path, steps: list[Step]) -> Recipe:
    """Run a recipe over `NAMES` and return it."""
    write_toys(folder, NAMES)
    recipe = toy_recipe(folder, steps)
    run_segments(recipe, inline)
    return recipe


def compare(recipe: Recipe, folder: Path, steps: list[Step]) -> Comparison:
    """Return what `whatif` says of other steps."""
    return whatif(inspect(recipe), recipe, toy_recipe(folder, steps))


def clips_by_fate(totals: Mapping[str, ClipTotal]) -> dict[str, int]:
    """Return the number of clips of each fate that occurs."""
    return {fate: total.clips for fate, total in totals.items() if total.clips}


def fates_of_a_run(folder: Path, steps: list[Step]) -> Counter[str]:
    """Return the number of clips by fate after a run."""
    rows = final_rows(run_segments(toy_recipe(folder, steps), inline))
    return Counter(row["fate"] for row in rows if row["clip_index"] is not None)


@pytest.mark.parametrize(("number", "score"), [(5, 9), (5, 4), (3, 9), (1, 0), (5, 1e9), (0, 9)])
def test_two_thresholds_give_the_fates_of_a_run(tmp_path: Path, number: float, score: float) -> None:
    comparison = compare(run_recipe(tmp_path, two_thresholds()), tmp_path, two_thresholds(number, score))
    assert clips_by_fate(comparison.before) == fates_of_a_run(tmp_path, two_thresholds())
    assert clips_by_fate(comparison.after) == fates_of_a_run(tmp_path, two_thresholds(number, score))


class Halved(Score):
    """A second score, with a column of its own."""

    name: str = "halved"

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("halved", pa.float64(), "half the number"),)

    def open(self, context: Context) -> TableFunction:
        return lambda table: map_rows(table, self.writes(), lambda row: {"halved": row["number"] / 2})


def four_thresholds(low: float, high: float, score: float, halved: float) -> list[Step]:
    """Return four `keep` steps, two of them on one column, two scores, and a Global step, which starts a segment."""
    scores: list[Step] = [Score(), keep(number=Bound(max=high), score=Bound(max=score)), Halved()]
    return [
        Measure(),
        Split(),
        keep(number=Bound(min=low)),
        *scores,
        Pick(),
        keep(halved=Bound(max=halved)),
        keep(number=Bound(max=6)),
    ]


@pytest.mark.parametrize(
    ("low", "high", "score", "halved"),
    [(0, 7, 40, 3), (1, 7, 40, 3), (0, 3, 40, 3), (0, 7, 10, 3), (0, 7, 40, 1), (2, 5, 20, 9)],
)
def test_four_thresholds_give_the_fates_of_a_run(
    tmp_path: Path, low: float, high: float, score: float, halved: float
) -> None:
    """Pick decides by the number alone, so these thresholds do not change its choice among the other clips."""
    recipe = run_recipe(tmp_path, four_thresholds(0, 7, 40, 3))
    assert [label for label in recipe.labels if label.startswith("keep")] == ["keep", "keep#2", "keep#3", "keep#4"]
    steps = four_thresholds(low, high, score, halved)
    assert clips_by_fate(compare(recipe, tmp_path, steps).after) == fates_of_a_run(tmp_path, steps)


def test_reasons_that_name_files_are_one_kind() -> None:
    rows = [
        ("duplicate", "dedup", "near-duplicate of a clip of a.mp4"),
        ("failed", "encode", "DecodeError: a.mp4: cut short"),
        ("dropped", "keep", "luma under 0.1"),
        ("kept", None, None),
    ]
    table = pa.table(dict(zip(("fate", "fate_step", "fate_reason"), map(list, zip(*rows, strict=True)), strict=True)))
    ends = Ends.from_table(table, ["scan", "keep", "dedup", "encode"])
    assert [ends.kinds[kind] for kind in ends.kind_N] == [
        ("duplicate", "dedup: duplicate"),
        ("failed", "encode: failed, DecodeError"),
        ("dropped", "keep: luma under 0.1"),
        ("kept", ""),
    ]
    assert ends.position_N.tolist() == [2, 3, 1, 4]


def test_clips_that_later_steps_have_not_seen_are_open(tmp_path: Path) -> None:
    """Clips with numbers 6 and 7 were dropped before they had a score, so their fate is unknown."""
    comparison = compare(run_recipe(tmp_path, two_thresholds()), tmp_path, two_thresholds(number=7))
    assert comparison.after[OPEN].clips == 2
    assert comparison.changes == (FateChange("keep: number over 5", "passes; later steps have not seen it", 2),)


def test_changes_by_reason_and_a_curve_of_every_bound(tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path, two_thresholds(last=Pick()))
    comparison = compare(recipe, tmp_path, two_thresholds(score=1, last=Pick()))
    assert comparison.before["duplicate"].clips == 8
    assert comparison.before["duplicate"].hours == pytest.approx(0.08)
    assert FateChange("kept", "keep#2: score over 1", 2) in comparison.changes
    assert [(curve.label, curve.column, curve.side, curve.current) for curve in comparison.curves] == [
        ("keep", "number", "max", 5.0),
        ("keep#2", "score", "max", 1.0),
    ]
    for curve in comparison.curves:
        kept = [total.clips for _, total in curve.points]
        assert kept == sorted(kept), "a looser bound never keeps less"
        assert curve.current in [threshold for threshold, _ in curve.points]


def test_only_thresholds_may_differ(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    before = toy_recipe(tmp_path, two_thresholds())
    with pytest.raises(ConfigError, match="no clips have been measured yet"):
        whatif(inspect(before), before, before)
    run_segments(before, inline)
    with pytest.raises(ConfigError, match="score: its settings differ"):
        compare(before, tmp_path, two_thresholds(power=3.0))
    with pytest.raises(ConfigError, match="the steps differ"):
        compare(before, tmp_path, two_thresholds(last=Pick()))


VALUES = st.one_of(st.none(), st.floats(-10, 10), st.just(float("nan")))


@given(st.lists(VALUES, min_size=1, max_size=20), st.none() | st.floats(-5, 0), st.none() | st.floats(0, 5))
def test_bounds_on_a_column_are_those_of_rows(
    values: list[float | None], low: float | None, high: float | None
) -> None:
    if low is None and high is None:
        return
    bound = Bound(min=low, max=high)
    expected = [bound.violation("x", value) is not None for value in values]
    assert violates(pa.chunked_array([pa.array(values, pa.float64())]), bound).tolist() == expected


@given(
    st.lists(st.sampled_from(["still", "pan", "zoom", None]), min_size=1),
    st.sets(st.sampled_from(["still", "pan"]), min_size=1),
)
def test_names_in_a_column_are_matched_as_in_rows(values: list[str | None], among: set[str]) -> None:
    bound = Bound.model_validate({"in": tuple(sorted(among))})
    expected: list[Any] = [bound.violation("camera", value) is not None for value in values]
    assert violates(pa.chunked_array([pa.array(values, pa.string())]), bound).tolist() == expected
