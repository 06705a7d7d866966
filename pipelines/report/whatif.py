"""The yield of other thresholds, from stored columns. Nothing is run and no video is opened.

Clips keep their measured columns whatever their fate, so thresholds can be applied again. A table cannot tell two
things. Clips that a looser threshold passes on to steps that have not seen them are counted as `open`. The duplicates
that `dedup` would find among other clips are unknown; stored duplicates stay duplicates.

Shape legend: N clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.arrays import BoolArray, Float64Array, Int64Array
from cluster.config import ConfigError
from pipelines.curation import Curation, SegmentState
from pipelines.engine.step import Step
from pipelines.recipe import Recipe
from pipelines.report.batches import SEPARATOR
from pipelines.report.funnel import MICROSECONDS_PER_HOUR
from pipelines.report.thresholds import bound_sides
from pipelines.steps.keep import Bound, Keep

OPEN = "open"
"""Fate of a clip that passes the thresholds on to steps that have not seen it."""

CURVE_POINTS = 11
"""Number of thresholds of a yield curve besides the current one: the minimum, the deciles and the maximum."""


class ClipTotal(NamedTuple):
    """Number of clips, and their total duration."""

    clips: int
    hours: float


@dataclass(frozen=True)
class YieldCurve:
    """The kept clips for some thresholds on one column, of the clips that all other thresholds keep."""

    label: str
    """Label of the `keep` step."""
    column: str
    side: str
    """`min` or `max`."""
    current: float
    """The threshold of the recipe."""
    points: tuple[tuple[float, ClipTotal], ...]


class FateChange(NamedTuple):
    """Number of clips whose fate changes from one reason to another; the reason of a kept clip is `kept`."""

    before: str
    after: str
    clips: int


@dataclass(frozen=True)
class Comparison:
    """The clips of a table by fate before and after a change of thresholds, and a yield curve of each threshold."""

    table: str
    before: Mapping[str, ClipTotal]
    after: Mapping[str, ClipTotal]
    changes: tuple[FateChange, ...]
    """The most frequent changes first."""
    curves: tuple[YieldCurve, ...]


def whatif(curation: Curation, before: Recipe, after: Recipe) -> Comparison:
    """Compare the thresholds of two recipes on the last complete table of `before`.

    Raises `ConfigError` if there is no such table with clips, or if the recipes differ in more than thresholds.
    """
    _check_only_thresholds_differ(before, after)
    state = _last_complete_segment(curation)
    segments = curation.segments[: curation.segments.index(state) + 1]
    labels = [label for earlier in segments for label in earlier.segment.labels]
    steps = dict(zip(after.labels, after.curate, strict=True))
    columns = {column for step in (*before.curate, *after.curate) if isinstance(step, Keep) for column in step.bounds}
    stored = [name for name in state.segment.schema.names if name in columns]
    if missing := sorted(columns - set(stored)):
        raise ConfigError(f"{', '.join(missing)}: not in {state.folder}; whatif needs columns that are measured there")
    names = ["duration_s", "fate", "fate_step", "fate_reason", *stored]
    pieces = state.rows.pieces(["clip_index", *names])
    table = pa.concat_tables(rows.filter(pc.is_valid(rows["clip_index"])).select(names) for _, rows in pieces)
    ends = Ends.from_table(table, labels)
    measured = table.select(["duration_s", *stored])
    # Sums of whole microseconds do not depend on the order of parts.
    clips = _Clips(measured, ends, np.rint(np.nan_to_num(measured["duration_s"].to_numpy().astype(np.float64)) * 1e6))
    changed = apply_thresholds(measured, ends, labels, [steps[label] for label in labels])
    return Comparison(
        state.folder,
        _totals_by_fate(ends, clips.microseconds_N),
        _totals_by_fate(changed, clips.microseconds_N),
        tuple(_changes(ends, changed)),
        tuple(_yield_curves(clips, labels, steps)),
    )


@dataclass(frozen=True)
class Ends:
    """How each clip of a table ends: its fate, its reason (empty if kept), and the step that decided it."""

    kinds: list[tuple[str, str]]
    """Fates with their reasons, each pair once."""
    kind_N: Int64Array
    """Index into `kinds` of each clip."""
    position_N: Int64Array
    """Position of the step that decided a clip's fate. A kept clip, or one that another step decided, has the last."""

    @classmethod
    def from_table(cls, table: pa.Table, labels: Sequence[str]) -> Ends:
        """Read the ends of clips from the fate columns of a table."""
        position = pc.index_in(table["fate_step"], pa.array(labels, pa.string()))
        position_N = np.asarray(pc.fill_null(position, len(labels)).to_numpy(), np.int64)
        names = ("fate", "fate_step", "fate_reason")
        joined = pc.binary_join_element_wise(*(pc.fill_null(table[name], "") for name in names), SEPARATOR)
        encoded = joined.dictionary_encode().unify_dictionaries()
        distinct = encoded.chunk(0).dictionary.to_pylist() if len(table) else []
        kinds: dict[tuple[str, str], int] = {}
        of_distinct = [kinds.setdefault(_kind(*value.split(SEPARATOR, 2)), len(kinds)) for value in distinct]
        code_N = np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])
        return cls(list(kinds), np.array(of_distinct, np.int64)[code_N], position_N)

    @property
    def fates(self) -> list[str]:
        """The fate of each kind."""
        return [fate for fate, _ in self.kinds]


def _kind(fate: str, step: str, reason: str) -> tuple[str, str]:
    return fate, f"{step}: {_reason_kind(fate, reason)}" if step else ""


@dataclass(frozen=True)
class _Clips:
    """The measured columns of the clips of a table, their stored ends, and durations in whole microseconds."""

    table: pa.Table
    stored: Ends
    microseconds_N: Float64Array


def _changes(before: Ends, after: Ends) -> Iterator[FateChange]:
    """Yield the changes of fate, the most frequent first. `after` has the kinds of `before`, and then its own."""
    fate_K = np.unique(np.array(after.fates), return_inverse=True)[1]
    changed_N = fate_K[before.kind_N] != fate_K[after.kind_N]
    pairs_2N = np.stack([before.kind_N[changed_N], after.kind_N[changed_N]])
    pairs, counts = np.unique(pairs_2N, axis=1, return_counts=True)
    changes: Counter[tuple[str, str]] = Counter()
    for old, new, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        changes[after.kinds[old][1], after.kinds[new][1]] += count
    for (was, becomes), count in sorted(changes.items(), key=lambda item: (-item[1], item[0])):
        yield FateChange(was or "kept", becomes or "kept", count)


def apply_thresholds(
    table: pa.Table,
    stored: Ends,
    labels: Sequence[str],
    steps: Sequence[Step],
    without: tuple[str, str, str] | None = None,
) -> Ends:
    """Return the ends of the clips of a table under the thresholds of `steps`.

    A clip whose stored fate another step than `keep` decided has that fate again, unless an earlier threshold drops
    it. `without` names a threshold to leave out, by label, column and side.
    """
    decided_at_N = stored.position_N
    written_at = {field.name: i for i, step in enumerate(steps) for field in step.writes()}
    kinds, kind_N = list(stored.kinds), stored.kind_N.copy()
    undecided_N = np.ones(len(kind_N), np.bool_)

    def end(mask_N: BoolArray, fate: str, reason: str) -> None:
        kind_N[mask_N] = len(kinds)
        kinds.append((fate, reason))

    for i, (label, step) in enumerate(zip(labels, steps, strict=True)):
        if not isinstance(step, Keep):
            undecided_N &= decided_at_N != i
            continue
        for column, bound in step.bounds.items():
            # A step after the one that decided the clip's fate has not measured the clip.
            measured_N = written_at.get(column, -1) < decided_at_N
            for side in bound_sides(bound):
                if (label, column, side.name) == without:
                    continue
                dropped_N = undecided_N & measured_N & violates(table[column], side.bound)
                end(dropped_N, "dropped", f"{label}: {column} {side.condition}")
                undecided_N &= ~dropped_N
    last_work = max((i for i, step in enumerate(steps) if step.writes() and not isinstance(step, Keep)), default=-1)
    passed_N = undecided_N & (decided_at_N < len(labels))
    end(passed_N, OPEN, "passes; later steps have not seen it")
    end(passed_N & (decided_at_N > last_work), "kept", "")
    return Ends(kinds, kind_N, decided_at_N)


def violates(column: pa.ChunkedArray, bound: Bound) -> BoolArray:
    """Return a mask `[N]` of the values that a bound drops. A null was not measured and breaks no bound."""
    measured_N = np.asarray(pc.is_valid(column).to_numpy(), np.bool_)
    if bound.among is not None:
        allowed = [str(value) if isinstance(value, str) else float(value) for value in bound.among]
        distinct = pc.unique(column).drop_null()
        outside = [(one if isinstance(one, str) else float(one)) not in allowed for one in distinct.to_pylist()]
        code_N = np.asarray(pc.fill_null(pc.index_in(column, value_set=distinct), len(outside)).to_numpy(), np.int64)
        return measured_N & np.array([*outside, False], np.bool_)[code_N]
    values_N = np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(), np.float64)
    low, high = (-np.inf if bound.min is None else bound.min), (np.inf if bound.max is None else bound.max)
    return measured_N & ~((values_N >= low) & (values_N <= high))


def _yield_curves(clips: _Clips, labels: Sequence[str], steps: Mapping[str, Step]) -> list[YieldCurve]:
    """Return a curve of each numeric threshold over the clips that all other steps keep, as far as is known."""
    curves = []
    for label in labels:
        step = steps[label]
        if not isinstance(step, Keep):
            continue
        for column, bound in step.bounds.items():
            kind = clips.table[column].type
            if not pa.types.is_floating(kind) and not pa.types.is_integer(kind):
                continue
            values = pc.fill_null(clips.table[column].cast(pa.float64()), np.nan)
            values_N = np.asarray(values.to_numpy(), np.float64)
            for side, current in (("min", bound.min), ("max", bound.max)):
                if current is None:
                    continue
                all_steps = [steps[name] for name in labels]
                ends = apply_thresholds(clips.table, clips.stored, labels, all_steps, (label, column, side))
                passes_K = np.isin(ends.fates, ("kept", OPEN))
                others_keep_N = passes_K[ends.kind_N] & ~np.isnan(values_N)
                if not others_keep_N.any():
                    continue
                quantiles = np.quantile(values_N[others_keep_N], np.linspace(0, 1, CURVE_POINTS)).tolist()
                thresholds = sorted({*quantiles, current})
                kept = [others_keep_N & (values_N >= t if side == "min" else values_N <= t) for t in thresholds]
                totals = [
                    ClipTotal(int(kept_N.sum()), float(clips.microseconds_N[kept_N].sum()) / MICROSECONDS_PER_HOUR)
                    for kept_N in kept
                ]
                curves.append(YieldCurve(label, column, side, current, tuple(zip(thresholds, totals, strict=True))))
    return curves


def _check_only_thresholds_differ(before: Recipe, after: Recipe) -> None:
    if before.labels != after.labels:
        raise ConfigError(
            f"the steps differ: {', '.join(before.labels)} became {', '.join(after.labels)}; "
            "whatif changes thresholds (keep) only"
        )
    for label, old, new in zip(before.labels, before.curate, after.curate, strict=True):
        if not isinstance(new, Keep) and old.settings_digest() != new.settings_digest():
            raise ConfigError(
                f"{label}: its settings differ; whatif changes thresholds (keep) only, `worldloom curate` runs the rest"
            )
    if before.sources != after.sources:
        raise ConfigError("the sources differ; whatif changes thresholds (keep) only")


def _last_complete_segment(curation: Curation) -> SegmentState:
    done = curation.segments if curation.complete else curation.segments[:-1]
    complete = [state for state in done if "clip_index" in state.segment.schema.names]
    if not complete:
        raise ConfigError(
            "no clips have been measured yet: run the recipe first, at least to the end of its first segment after cut"
        )
    return complete[-1]


def _reason_kind(fate: str, reason: str) -> str:
    """Return a reason without the file names in the reasons of duplicates and failures."""
    return "duplicate" if fate == "duplicate" else f"failed, {reason.partition(':')[0]}" if fate == "failed" else reason


def _totals_by_fate(ends: Ends, microseconds_N: Float64Array) -> dict[str, ClipTotal]:
    clips_K = np.bincount(ends.kind_N, minlength=len(ends.kinds))
    us_K = np.bincount(ends.kind_N, microseconds_N, minlength=len(ends.kinds))
    totals = {}
    for fate in ("kept", OPEN, "dropped", "failed", "duplicate"):
        is_fate_K = np.array(ends.fates) == fate
        totals[fate] = ClipTotal(int(clips_K[is_fate_K].sum()), float(us_K[is_fate_K].sum()) / MICROSECONDS_PER_HOUR)
    return totals
