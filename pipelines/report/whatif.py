"""What other thresholds would keep and lose, told from the columns that are stored: nothing is run and no video is opened.

Every clip of a table keeps its measured columns whatever became of it, so the thresholds can be applied anew. Two things a
table cannot know are counted apart: clips that a looser threshold lets through to steps that have not seen them yet (`open`), and
what `dedup` would make of another set of clips; duplicates stay duplicates here.

Shape legend: N clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.config import ConfigError
from pipelines.curation import Curation, SegmentState
from pipelines.engine.step import Step
from pipelines.recipe import Recipe
from pipelines.steps.keep import Bound, Keep

Bools = NDArray[np.bool_]
Texts = NDArray[np.object_]

OPEN = "open"
"""The fate of a clip that would pass the thresholds on to steps that have not seen it yet."""

CURVE_POINTS = 11
"""Thresholds of a yield curve: the smallest value, the deciles and the largest."""


@dataclass(frozen=True)
class Amount:
    """Clips, and how long they are together."""

    clips: int
    hours: float


@dataclass(frozen=True)
class YieldCurve:
    """What each of some thresholds on one column would keep of the clips that come to it, all else unchanged."""

    label: str
    column: str
    side: str
    now: float
    points: tuple[tuple[float, Amount], ...]


@dataclass(frozen=True)
class Answer:
    """Fates before and after; `changes` counts clips whose fate changes as (why now, why then, clips)."""

    table: str
    before: Mapping[str, Amount]
    after: Mapping[str, Amount]
    changes: tuple[tuple[str, str, int], ...]
    curves: tuple[YieldCurve, ...]


def whatif(curation: Curation, before: Recipe, after: Recipe) -> Answer:
    """Compare the thresholds of two recipes on the last table of `before` that is complete.

    Raises `ConfigError` where there is no such table with clips, and where the recipes differ in more than thresholds.
    """
    _check_only_thresholds_differ(before, after)
    state = _last_complete(curation)
    labels = [
        label for done in curation.segments[: curation.segments.index(state) + 1] for label in done.segment.labels
    ]
    steps = dict(zip(after.labels, after.curate, strict=True))
    columns = {column for step in (*before.curate, *after.curate) if isinstance(step, Keep) for column in step.bounds}
    known = [name for name in state.segment.schema.names if name in columns]
    if missing := sorted(columns - set(known)):
        raise ConfigError(
            f"{', '.join(missing)}: not in {state.folder}; only columns that are measured there can be asked about"
        )
    table = state.rows.read(["uid", "clip_index", "duration_s", "fate", "fate_step", "fate_reason", *known])
    table = table.filter(pc.is_valid(table["clip_index"]))
    ends = Ends.of(table, labels)
    fates_N, reasons_N = apply(table, ends, labels, [steps[label] for label in labels])
    moved_N = ends.fates_N != fates_N
    changes = Counter(zip(ends.reasons_N[moved_N].tolist(), reasons_N[moved_N].tolist(), strict=True))
    hours_N = np.nan_to_num(table["duration_s"].to_numpy().astype(np.float64)) / 3600
    return Answer(
        state.folder,
        _amounts(ends.fates_N, hours_N),
        _amounts(fates_N, hours_N),
        tuple(
            (old or "kept", new or "kept", count)
            for (old, new), count in sorted(changes.items(), key=lambda item: (-item[1], item[0]))
        ),
        tuple(_curves(table, ends, labels, steps, hours_N)),
    )


@dataclass(frozen=True)
class Ends:
    """How each clip of a table ended: its fate, the reason in words (empty while it is kept), and the position of the step."""

    fates_N: Texts
    reasons_N: Texts
    positions_N: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table, labels: Sequence[str]) -> Ends:
        """The ends that are stored. A clip that is kept, or was ended by a step that is not in `labels`, ended after all of them."""
        position = pc.index_in(table["fate_step"], pa.array(labels, pa.string()))
        positions_N = np.asarray(pc.fill_null(position, len(labels)).to_numpy(), np.int64)
        return cls(np.array(table["fate"].to_pylist(), object), np.array(_reasons(table), object), positions_N)


def apply(
    table: pa.Table,
    ends: Ends,
    labels: Sequence[str],
    steps: Sequence[Step],
    without: tuple[str, str, str] | None = None,
) -> tuple[Texts, Texts]:
    """(fate, reason) of each clip of a table under the thresholds of `steps`, which made it under others.

    A clip that a step other than `keep` ended ends there again, unless a threshold before that ends it first. `without`: label,
    column and side of a threshold that is left out.
    """
    ended_N = ends.positions_N
    written_at = {field.name: i for i, step in enumerate(steps) for field in step.writes()}
    fates, reasons = ends.fates_N.copy(), ends.reasons_N.copy()
    undecided_N = np.ones(len(fates), np.bool_)
    for i, (label, step) in enumerate(zip(labels, steps, strict=True)):
        if not isinstance(step, Keep):
            undecided_N &= ended_N != i
            continue
        for column, bound in step.bounds.items():
            # What a step after the clip's end would have measured is not known.
            measured_N = written_at.get(column, -1) < ended_N
            for name, words, side in _sides(bound):
                if (label, column, name) == without:
                    continue
                broken_N = undecided_N & measured_N & broken(table[column], side)
                fates[broken_N], reasons[broken_N] = "dropped", f"{label}: {column} {words}"
                undecided_N &= ~broken_N
    last_work = max((i for i, step in enumerate(steps) if step.writes() and not isinstance(step, Keep)), default=-1)
    let_through_N = undecided_N & (ended_N < len(labels))
    fates[let_through_N], reasons[let_through_N] = OPEN, "passes; later steps have not seen it"
    done_N = let_through_N & (ended_N > last_work)
    fates[done_N], reasons[done_N] = "kept", ""
    return fates, reasons


def broken(column: pa.ChunkedArray, bound: Bound) -> Bools:
    """Which values of a column a bound drops; nulls, of what was not measured for this kind of clip, it does not."""
    measured_N = np.asarray(pc.is_valid(column).to_numpy(), np.bool_)
    if bound.among is not None:
        allowed = [str(value) if isinstance(value, str) else float(value) for value in bound.among]
        values = [value if isinstance(value, str) else float(value or 0) for value in column.to_pylist()]
        return measured_N & np.array([value not in allowed for value in values], np.bool_)
    values_N = np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(), np.float64)
    low, high = (-np.inf if bound.min is None else bound.min), (np.inf if bound.max is None else bound.max)
    return measured_N & ~((values_N >= low) & (values_N <= high))


def _sides(bound: Bound) -> list[tuple[str, str, Bound]]:
    """A bound one side at a time: its name, and in the words of `keep`."""
    sides = []
    if bound.among is not None:
        sides.append(("in", f"not one of {', '.join(map(str, bound.among))}", Bound(**{"in": bound.among})))  # type: ignore[arg-type]
    if bound.min is not None:
        sides.append(("min", f"under {bound.min:g}", Bound(min=bound.min)))
    if bound.max is not None:
        sides.append(("max", f"over {bound.max:g}", Bound(max=bound.max)))
    return sides


def _curves(
    table: pa.Table, ends: Ends, labels: Sequence[str], steps: Mapping[str, Step], hours_N: NDArray[np.float64]
) -> list[YieldCurve]:
    """A curve for each side of each bound on numbers: of the clips that all else lets through as far as is known."""
    curves = []
    for label in labels:
        step = steps[label]
        if not isinstance(step, Keep):
            continue
        for column, bound in step.bounds.items():
            if not pa.types.is_floating(table[column].type) and not pa.types.is_integer(table[column].type):
                continue
            values_N = np.asarray(pc.fill_null(table[column].cast(pa.float64()), np.nan).to_numpy(), np.float64)
            for side, now in (("min", bound.min), ("max", bound.max)):
                if now is None:
                    continue
                fates_N, _ = apply(table, ends, labels, [steps[name] for name in labels], without=(label, column, side))
                reach_N = ((fates_N == "kept") | (fates_N == OPEN)) & ~np.isnan(values_N)
                if not reach_N.any():
                    continue
                at = sorted({*np.quantile(values_N[reach_N], np.linspace(0, 1, CURVE_POINTS)).tolist(), now})
                passes = [reach_N & (values_N >= point if side == "min" else values_N <= point) for point in at]
                amounts = [Amount(int(mask.sum()), float(hours_N[mask].sum())) for mask in passes]
                curves.append(YieldCurve(label, column, side, now, tuple(zip(at, amounts, strict=True))))
    return curves


def _check_only_thresholds_differ(before: Recipe, after: Recipe) -> None:
    if before.labels != after.labels:
        raise ConfigError(
            f"the steps differ: {', '.join(before.labels)} became {', '.join(after.labels)}; whatif changes thresholds only"
        )
    for label, old, new in zip(before.labels, before.curate, after.curate, strict=True):
        if not isinstance(new, Keep) and old.settings_digest() != new.settings_digest():
            raise ConfigError(
                f"{label}: its settings differ; whatif changes thresholds (keep) only, a run tells the rest"
            )
    if before.sources != after.sources:
        raise ConfigError("the sources differ; whatif changes thresholds (keep) only")


def _last_complete(curation: Curation) -> SegmentState:
    done = curation.segments if curation.complete else curation.segments[:-1]
    complete = [state for state in done if "clip_index" in state.segment.schema.names]
    if not complete:
        raise ConfigError(
            "no clips have been measured yet: run the recipe first, at least to the end of its first segment after cut"
        )
    return complete[-1]


def _reasons(table: pa.Table) -> list[str]:
    """Why each clip ended, empty while it is kept, in as few words as tell kinds apart."""
    columns = zip(*(table[name].to_pylist() for name in ("fate", "fate_step", "fate_reason")), strict=True)
    return [f"{step}: {_kind(fate, reason or '')}" if step else "" for fate, step, reason in columns]


def _kind(fate: str, reason: str) -> str:
    """A reason without what is one clip's own: those of duplicates and failures name files."""
    return "duplicate" if fate == "duplicate" else f"failed, {reason.partition(':')[0]}" if fate == "failed" else reason


def _amounts(fates_N: Texts, hours_N: NDArray[np.float64]) -> dict[str, Amount]:
    return {
        fate: Amount(int((fates_N == fate).sum()), float(hours_N[fates_N == fate].sum()))
        for fate in ("kept", OPEN, "dropped", "failed", "duplicate")
    }
