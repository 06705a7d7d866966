"""Thresholds told from stored columns against a run with them."""

from __future__ import annotations

from collections import Counter
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
from pipelines.report.whatif import OPEN, Ends, broken, whatif
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import final_rows, keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split

NAMES = ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"]


def steps_of(number: float = 5, score: float = 9, last: Step | None = None, power: float = 2.0) -> list[Step]:
    return [
        Measure(),
        Split(),
        keep(number=Bound(max=number)),
        Score(power=power),
        keep(score=Bound(max=score)),
        *([last] if last else []),
    ]


def fates_of_a_run(folder: Path, steps: list[Step]) -> Counter[str]:
    rows = final_rows(run_segments(toy_recipe(folder, steps), inline))
    return Counter(row["fate"] for row in rows if row["clip_index"] is not None)


@pytest.mark.parametrize(("number", "score"), [(5, 9), (5, 4), (3, 9), (1, 0), (5, 1e9), (0, 9)])
def test_tighter_thresholds_and_a_looser_last_one_are_told_exactly(tmp_path: Path, number: float, score: float) -> None:
    write_toys(tmp_path, NAMES)
    before = toy_recipe(tmp_path, steps_of())
    run_segments(before, inline)
    answer = whatif(inspect(before), before, toy_recipe(tmp_path, steps_of(number, score)))
    assert {fate: amount.clips for fate, amount in answer.before.items() if amount.clips} == fates_of_a_run(
        tmp_path, steps_of()
    )
    assert {fate: amount.clips for fate, amount in answer.after.items() if amount.clips} == fates_of_a_run(
        tmp_path, steps_of(number, score)
    )


class Halved(Score):
    """A second score, that reads another way."""

    name: str = "halved"

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("halved", pa.float64(), "half the number"),)

    def open(self, context: Context) -> TableFunction:
        return lambda table: map_rows(table, self.writes(), lambda row: {"halved": row["number"] / 2})


def long_recipe(low: float, high: float, score: float, halved: float) -> list[Step]:
    """Four `keep`, two of them on one column, two scores, and a Global step between, which makes another segment."""
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
def test_several_thresholds_and_new_scores_are_told_as_a_run_would(
    tmp_path: Path, low: float, high: float, score: float, halved: float
) -> None:
    """Pick decides by the number alone, so thresholds on what follows from it do not change its choice among the rest."""
    write_toys(tmp_path, NAMES)
    before = toy_recipe(tmp_path, long_recipe(0, 7, 40, 3))
    assert [label for label in before.labels if label.startswith("keep")] == ["keep", "keep#2", "keep#3", "keep#4"]
    run_segments(before, inline)
    answer = whatif(inspect(before), before, toy_recipe(tmp_path, long_recipe(low, high, score, halved)))
    expected = fates_of_a_run(tmp_path, long_recipe(low, high, score, halved))
    assert {fate: amount.clips for fate, amount in answer.after.items() if amount.clips} == expected


def test_reasons_that_name_files_are_one_kind() -> None:
    rows = [
        ("duplicate", "dedup", "near-duplicate of a clip of a.mp4"),
        ("failed", "encode", "DecodeError: a.mp4: cut short"),
        ("dropped", "keep", "luma under 0.1"),
        ("kept", None, None),
    ]
    table = pa.table(dict(zip(("fate", "fate_step", "fate_reason"), map(list, zip(*rows, strict=True)), strict=True)))
    ends = Ends.of(table, ["scan", "keep", "dedup", "encode"])
    assert ends.reasons_N.tolist() == ["dedup: duplicate", "encode: failed, DecodeError", "keep: luma under 0.1", ""]
    assert ends.positions_N.tolist() == [2, 3, 1, 4]


def test_what_later_steps_have_not_seen_stays_open(tmp_path: Path) -> None:
    """Clips numbered 6 and 7 were dropped before they had a score; whether they stay is for the score to say."""
    write_toys(tmp_path, NAMES)
    before = toy_recipe(tmp_path, steps_of())
    run_segments(before, inline)
    answer = whatif(inspect(before), before, toy_recipe(tmp_path, steps_of(number=7)))
    assert answer.after[OPEN].clips == 2
    assert answer.changes == (("keep: number over 5", "passes; later steps have not seen it", 2),)


def test_changes_are_counted_by_reason_and_curves_cover_every_bound(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    before = toy_recipe(tmp_path, steps_of(last=Pick()))
    run_segments(before, inline)
    answer = whatif(inspect(before), before, toy_recipe(tmp_path, steps_of(score=1, last=Pick())))
    assert answer.before["duplicate"].clips == 8
    assert answer.before["duplicate"].hours == pytest.approx(0.08)
    assert ("kept", "keep#2: score over 1", 2) in answer.changes
    assert [(curve.label, curve.column, curve.side, curve.now) for curve in answer.curves] == [
        ("keep", "number", "max", 5.0),
        ("keep#2", "score", "max", 1.0),
    ]
    for curve in answer.curves:
        kept = [amount.clips for _, amount in curve.points]
        assert kept == sorted(kept), "a looser bound never keeps less"
        assert curve.now in [point for point, _ in curve.points]


def test_only_thresholds_may_differ(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    before = toy_recipe(tmp_path, steps_of())
    with pytest.raises(ConfigError, match="no clips have been measured yet"):
        whatif(inspect(before), before, before)
    run_segments(before, inline)
    with pytest.raises(ConfigError, match="score: its settings differ"):
        whatif(inspect(before), before, toy_recipe(tmp_path, steps_of(power=3.0)))
    with pytest.raises(ConfigError, match="the steps differ"):
        whatif(inspect(before), before, toy_recipe(tmp_path, steps_of(last=Pick())))


VALUES = st.one_of(st.none(), st.floats(-10, 10), st.just(float("nan")))


@given(st.lists(VALUES, min_size=1, max_size=20), st.none() | st.floats(-5, 0), st.none() | st.floats(0, 5))
def test_bounds_on_columns_are_those_on_rows(values: list[float | None], low: float | None, high: float | None) -> None:
    if low is None and high is None:
        return
    bound = Bound(min=low, max=high)
    expected = [bound.violation("x", value) is not None for value in values]
    assert broken(pa.chunked_array([pa.array(values, pa.float64())]), bound).tolist() == expected


@given(
    st.lists(st.sampled_from(["still", "pan", "zoom", None]), min_size=1),
    st.sets(st.sampled_from(["still", "pan"]), min_size=1),
)
def test_names_are_matched_as_on_rows(values: list[str | None], among: set[str]) -> None:
    bound = Bound(**{"in": tuple(sorted(among))})  # type: ignore[arg-type]
    expected: list[Any] = [bound.violation("camera", value) is not None for value in values]
    assert broken(pa.chunked_array([pa.array(values, pa.string())]), bound).tolist() == expected
