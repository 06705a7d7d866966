"""What was measured: a histogram a column, split by what became of the clips, with the thresholds of the recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.engine.segments import is_heavy
from pipelines.engine.step import FATE_COLUMNS
from pipelines.recipe import Recipe
from pipelines.report.batches import Batch, Bools, Floats, Smallest
from pipelines.report.causes import Cause
from pipelines.report.funnel import HOUR, Amount
from pipelines.steps.keep import Bound, Keep

PLAIN = frozenset(
    (
        *(
            "uid",
            "source_uid",
            "size_bytes",
            "rotation_deg",
            "time_base_num",
            "time_base_den",
            "first_pts",
            "bit_depth",
            "source_duration_s",
        ),
        *("start_pts", "end_pts", "clip_index", "clip_count", "shot_index", "width", "height", "fps", "n_tokens"),
        *("duplicate_distance", "duplicate_overlap"),
        *FATE_COLUMNS,
    )
)
"""Numbers that are places and sizes, not measures; they get a histogram only where a threshold stands on them."""

BINS = 48
"""At most; few values get fewer bins, `bins_for`."""
SAMPLED = 20_000
"""Values that settle the range of a column's histogram: those of the clips with the smallest uids, which are hashes."""
TAIL = 0.004
"""Share of values at each end that the first and the last bin take in, so that one outlier does not flatten the rest."""
LOG_RATIO = 8.0
"""A column whose 99th percentile is this many times its median gets a logarithmic axis."""


@dataclass(frozen=True)
class Measured:
    """A column of the last table that says something of a clip, and the bounds on it: (label of the step, bound)."""

    name: str
    doc: str
    is_number: bool
    bounds: tuple[tuple[str, Bound], ...]

    def edges_at(self) -> list[float]:
        return sorted({value for _, bound in self.bounds for value in (bound.min, bound.max) if value is not None})


def measured_columns(recipe: Recipe, schema: pa.Schema) -> list[Measured]:
    """Columns with a threshold first, in the recipe's order, then all other measured numbers and names."""
    bounds: dict[str, list[tuple[str, Bound]]] = {}
    for label, step in zip(recipe.labels, recipe.curate, strict=True):
        if isinstance(step, Keep):
            for name, bound in step.bounds.items():
                bounds.setdefault(name, []).append((label, bound))
    names = [name for name in bounds if name in schema.names]
    for column in schema:
        measured = pa.types.is_floating(column.type) or column.name == "camera"
        scored = pa.types.is_integer(column.type) and column.name not in PLAIN
        if column.name not in (*names, *PLAIN) and not is_heavy(column) and (measured or scored):
            names.append(column.name)
    columns = []
    for name in names:
        column = schema.field(name)
        is_number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
        if is_number or pa.types.is_string(column.type) or pa.types.is_boolean(column.type):
            doc = (column.metadata or {}).get(b"doc", b"").decode()
            columns.append(Measured(name, doc, is_number, tuple(bounds.get(name, ()))))
    return columns


class ValueSample:
    """Values of the clips with the smallest uids: the same ones however rows are divided in parts."""

    def __init__(self, names: Sequence[str], size: int = SAMPLED) -> None:
        self._names, self._size = list(names), size
        self._pieces: list[pa.Table] = []
        self._n = 0

    def add(self, batch: Batch) -> None:
        arrays = {name: pa.array(batch.floats(name)) for name in self._names}
        self._pieces.append(
            pa.table({"uid": batch.table["uid"], "kept": pa.array(batch.is_kept), **arrays}).filter(
                pa.array(batch.is_clip)
            )
        )
        self._n += len(batch)
        if self._n > 2 * self._size:
            self._trim()

    def _trim(self) -> None:
        self._pieces = [pa.concat_tables(self._pieces).sort_by("uid").slice(0, self._size)]
        self._n = len(self._pieces[0])

    def values(self, name: str, kept: bool = False) -> Floats:
        """Finite values of a column, sorted; `kept`: of kept clips alone."""
        self._trim()
        table = self._pieces[0].filter(self._pieces[0]["kept"]) if kept else self._pieces[0]
        values = table[name].to_numpy()
        return np.sort(values[np.isfinite(values)])


@dataclass(frozen=True)
class Axis:
    """The bins of a histogram: `[B+1]` edges, evenly spaced up to borders at the thresholds, on a plain or logarithmic axis."""

    edges: Floats
    is_log: bool

    def place(self, values_N: Floats) -> tuple[NDArray[np.int64], Bools]:
        """`[N]` bin of each value, those beyond in the first and last, and which values are numbers at all."""
        valid_N = np.isfinite(values_N)
        filled_N = np.where(valid_N, values_N, 0.0)
        return np.clip(np.searchsorted(self.edges, filled_N, side="right") - 1, 0, len(self.edges) - 2), valid_N


def bins_for(n: int, most: int = BINS) -> int:
    """How many bins suit n values: twice their square root, and 20 at least."""
    return min(most, max(20, 2 * math.isqrt(n)))


def axis_of(values: Floats, marks: Sequence[float] = (), most: int = BINS) -> Axis:
    """An axis of at most `most` bins for sorted values that shows all but the tails, with an edge on every mark."""
    bins = bins_for(len(values), most)
    inner = [mark for mark in marks if np.isfinite(mark)]
    if not len(values):
        values = np.array(inner or [0.0, 1.0])
    low, median, high = np.quantile(values, [TAIL, 0.5, 1 - TAIL]).tolist()
    smallest = float(np.quantile(values, 0.02))
    is_log = (
        median > 0
        and smallest > 0
        and float(np.quantile(values, 0.99)) > LOG_RATIO * median
        and all(mark > 0 for mark in inner)
    )
    low, high = min([low, *inner]), max([high, *inner])
    if is_log:
        low, high = np.log10(max(low, smallest / 4)), np.log10(high)
        inner = [float(np.log10(mark)) for mark in inner]
        low = min([low, *inner])
    span = high - low
    if span <= 0:
        # Half of the very smallest numbers is 0.
        half = 0.5 * abs(low) if abs(low) >= np.finfo(np.float64).tiny else 0.5
        low, high = low - half, high + half
    elif inner:
        # A threshold at the end of the axis would not be seen to divide anything.
        low, high = (
            (low - span / bins if min(inner) == low else low),
            (high + span / bins if max(inner) == high else high),
        )
    if not is_log and low < 0 <= values[0]:
        low = 0.0 if not inner or min(inner) > 0 else low
    pieces = []
    borders = sorted({low, *inner, high})
    for left, right in itertools.pairwise(borders):
        n = max(1, round(bins * (right - left) / (high - low)))
        pieces.append(np.linspace(left, right, n + 1)[:-1])
    edges = np.concatenate([*pieces, [high]])
    if is_log:
        edges = 10**edges
        # An edge that went through the logarithm is put back on its threshold exactly.
        for mark in marks:
            edges[np.argmin(np.abs(edges - mark))] = mark
    # Where there are fewer numbers between two edges than bins, some are alike.
    return Axis(np.unique(edges), is_log)


GROUPS = ("kept", "here", "else")
"""What became of the clips of a bin: kept, dropped by a threshold on this column, lost elsewhere."""


@dataclass
class Histogram:
    """Counts `[3, B]` by what became of the clips, and how many were not measured; or counts by name."""

    column: Measured
    axis: Axis | None
    counts: NDArray[np.int64] = field(init=False)
    names: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    missing: int = 0
    below: int = 0
    above: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(GROUPS), len(self.axis.edges) - 1 if self.axis else 0), np.int64)

    def add(self, batch: Batch) -> None:
        codes_N, causes = batch.causes
        here = np.array([drops_on(cause, self.column) for cause in causes], np.bool_)[codes_N]
        group_N = np.where(batch.is_kept, 0, np.where(here, 1, 2))
        if self.axis is None:
            self._add_names(batch, group_N)
            return
        values_N = batch.floats(self.column.name)
        bin_N, valid_N = self.axis.place(values_N)
        chosen_N = batch.is_clip & valid_N
        self.missing += int((batch.is_clip & ~valid_N).sum())
        self.below += int((chosen_N & (values_N < self.axis.edges[0])).sum())
        self.above += int((chosen_N & (values_N > self.axis.edges[-1])).sum())
        n = self.counts.shape[1]
        self.counts += np.bincount(group_N[chosen_N] * n + bin_N[chosen_N], minlength=len(GROUPS) * n).reshape(
            len(GROUPS), n
        )

    def _add_names(self, batch: Batch, group_N: NDArray[np.int64]) -> None:
        encoded = batch.table[self.column.name].cast(pa.string()).combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        code_N = np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), np.int64)
        self.missing += int((batch.is_clip & (code_N < 0)).sum())
        for code, name in enumerate(names):
            counts = np.bincount(group_N[batch.is_clip & (code_N == code)], minlength=len(GROUPS))
            self.names[name] = self.names.get(name, np.zeros(len(GROUPS), np.int64)) + counts

    def as_json(self) -> dict[str, Any]:
        common = {"name": self.column.name, "doc": self.column.doc, "missing": self.missing}
        if self.axis is None:
            order = sorted(
                (name for name in self.names if self.names[name].sum()),
                key=lambda name: (-int(self.names[name].sum()), name),
            )[:40]
            return {
                **common,
                "names": order,
                "counts": [[int(self.names[name][group]) for name in order] for group in range(len(GROUPS))],
            }
        edges = [round_to(edge) for edge in self.axis.edges.tolist()]
        ends = {"below": self.below, "above": self.above}
        return {**common, **ends, "edges": edges, "log": self.axis.is_log, "counts": self.counts.tolist()}


def drops_on(cause: Cause, column: Measured) -> bool:
    """Whether a cause is a threshold on this column; `keep` begins its reasons with the column."""
    return (
        cause.fate == "dropped"
        and cause.reason.startswith(f"{column.name} ")
        and any(label == cause.step for label, _ in column.bounds)
    )


@dataclass
class Threshold:
    """One side of a bound, and the clips nearest to it: those it dropped, and those kept in spite of it."""

    label: str
    column: Measured
    side: str
    bound: float | None
    words: str
    dropped: Smallest
    kept: Smallest

    def add(self, batch: Batch) -> None:
        codes_N, causes = batch.causes
        here = np.array([self.is_mine(cause) for cause in causes], np.bool_)[codes_N] & batch.is_clip
        if self.bound is None:
            self.dropped.add(batch, here, batch.uids)
            return
        gap_N = np.abs(batch.floats(self.column.name) - self.bound)
        self.dropped.add(batch, here, np.where(np.isnan(gap_N), np.inf, gap_N))
        self.kept.add(batch, batch.is_kept & batch.is_clip & ~np.isnan(gap_N), gap_N)

    def is_mine(self, cause: Cause) -> bool:
        """Reasons of names are not one of a few words, so that all of a column's belong to its one bound."""
        if cause.fate != "dropped" or cause.step != self.label:
            return False
        return (
            cause.reason == f"{self.column.name} {self.words}"
            if self.bound is not None
            else cause.reason.startswith(f"{self.column.name} is ")
        )

    def as_json(self, causes: Mapping[Cause, Amount]) -> dict[str, Any]:
        mine = [amount for cause, amount in causes.items() if self.is_mine(cause)]
        said = {
            "label": self.label,
            "column": self.column.name,
            "side": self.side,
            "bound": self.bound,
            "words": self.words,
        }
        return {
            **said,
            "dropped": sum(amount.rows for amount in mine),
            "hours": sum(amount.micros for amount in mine) / HOUR,
        }


def thresholds(columns: Sequence[Measured], size: int) -> list[Threshold]:
    """Every side of every bound, with room for `size` clips on both sides of it."""
    found = []
    for column in columns:
        for label, bound in column.bounds:
            sides: list[tuple[str, float | None, str]] = []
            if bound.min is not None:
                sides.append(("min", bound.min, f"under {bound.min:g}"))
            if bound.max is not None:
                sides.append(("max", bound.max, f"over {bound.max:g}"))
            if bound.among is not None:
                sides.append(("in", None, f"not one of {', '.join(map(str, bound.among))}"))
            found += [
                Threshold(label, column, side, value, words, Smallest(size), Smallest(size))
                for side, value, words in sides
            ]
    return found


def round_to(value: float | None, digits: int = 5) -> float | None:
    """A number with so many significant digits; None for what is no number."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
