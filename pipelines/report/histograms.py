"""Histograms of measured columns, split by the outcome of the clips."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.arrays import BoolArray, Float64Array, Int64Array
from pipelines.report.batches import Batch
from pipelines.report.causes import Cause
from pipelines.report.columns import MeasuredColumn, round_significant

MAX_BINS = 48
"""Largest number of bins; few values get fewer bins, see `n_bins`."""
MIN_BINS = 20
MAX_NAMES = 40
"""Largest number of bars in a histogram of names."""
OUTLIER_SHARE = 0.004
"""Share of values at each end that the first and last bin include, so that an outlier does not flatten the rest."""
LOG_RATIO = 8.0
"""A column whose 99th percentile exceeds this multiple of its median gets a logarithmic axis."""

OUTCOMES = ("kept", "dropped_here", "lost_elsewhere")
"""Outcomes of the clips of a bin: kept, dropped by a threshold on this column, or lost for another cause."""


@dataclass(frozen=True)
class Axis:
    """The bins of a histogram: `[B+1]` edges, evenly spaced between thresholds on a linear or logarithmic axis."""

    edges: Float64Array
    is_log: bool

    def bins_of(self, values_N: Float64Array) -> tuple[Int64Array, BoolArray]:
        """Return the bin `[N]` of each value and a mask `[N]` of the finite values.

        Values beyond the axis are in the first or last bin.
        """
        valid_N = np.isfinite(values_N)
        filled_N = np.where(valid_N, values_N, 0.0)
        return np.clip(np.searchsorted(self.edges, filled_N, side="right") - 1, 0, len(self.edges) - 2), valid_N


def n_bins(n_values: int, max_bins: int = MAX_BINS) -> int:
    """Return twice the square root of the number of values, at least `MIN_BINS` and at most `max_bins`."""
    return min(max_bins, max(MIN_BINS, 2 * math.isqrt(n_values)))


def make_axis(values: Float64Array, thresholds: Sequence[float] = (), max_bins: int = MAX_BINS) -> Axis:
    """Return an axis for sorted values that leaves out outliers and has an edge on every finite threshold.

    It has about as many bins as `n_bins` returns.
    """
    bins = n_bins(len(values), max_bins)
    marks = [threshold for threshold in thresholds if np.isfinite(threshold)]
    if not len(values):
        values = np.array(marks or [0.0, 1.0])
    low, median, high = np.quantile(values, [OUTLIER_SHARE, 0.5, 1 - OUTLIER_SHARE]).tolist()
    smallest = float(np.quantile(values, 0.02))
    is_log = (
        median > 0
        and smallest > 0
        and float(np.quantile(values, 0.99)) > LOG_RATIO * median
        and all(mark > 0 for mark in marks)
    )
    low, high = min([low, *marks]), max([high, *marks])
    if is_log:
        low, high = np.log10(max(low, smallest / 4)), np.log10(high)
        marks = [float(np.log10(mark)) for mark in marks]
        low = min([low, *marks])
    span = high - low
    if span <= 0:
        # Half of the very smallest numbers is 0.
        half = 0.5 * abs(low) if abs(low) >= np.finfo(np.float64).tiny else 0.5
        low, high = low - half, high + half
    elif marks:
        # Beyond the outermost thresholds is a whole bin: a narrower one would not be visible.
        low, high = min(low, min(marks) - span / bins), max(high, max(marks) + span / bins)
    if not is_log and low < 0 <= values[0]:
        low = 0.0 if not marks or min(marks) > 0 else low
    pieces = []
    for left, right in itertools.pairwise(sorted({low, *marks, high})):
        n = max(1, round(bins * (right - left) / (high - low)))
        pieces.append(np.linspace(left, right, n + 1)[:-1])
    edges = np.concatenate([*pieces, [high]])
    if is_log:
        edges = 10**edges
        # The logarithm and its inverse round: put each edge back on its threshold exactly.
        for threshold in thresholds:
            edges[np.argmin(np.abs(edges - threshold))] = threshold
    # If there are fewer floats between two edges than bins, some edges are equal.
    return Axis(np.unique(edges), is_log)


@dataclass
class Histogram:
    """Counts of clips by outcome and bin `[3, B]`, or by name, and the number of clips without a value."""

    column: MeasuredColumn
    axis: Axis | None
    """None for a column of names."""
    counts: Int64Array = field(init=False)
    names: dict[str, Int64Array] = field(default_factory=dict)
    """Counts `[3]` by outcome, of each name."""
    missing: int = 0
    below: int = 0
    """Number of clips with a value under the first edge."""
    above: int = 0
    """Number of clips with a value over the last edge."""

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(OUTCOMES), len(self.axis.edges) - 1 if self.axis else 0), np.int64)

    def add(self, batch: Batch) -> None:
        """Count the clips of a batch."""
        codes_N, causes = batch.causes
        dropped_here_N = np.array([drops_on(cause, self.column) for cause in causes], np.bool_)[codes_N]
        outcome_N = np.where(batch.is_kept, 0, np.where(dropped_here_N, 1, 2))
        if self.axis is None:
            self._add_names(batch, outcome_N)
            return
        values_N = batch.floats(self.column.name)
        bin_N, valid_N = self.axis.bins_of(values_N)
        chosen_N = batch.is_clip & valid_N
        self.missing += int((batch.is_clip & ~valid_N).sum())
        self.below += int((chosen_N & (values_N < self.axis.edges[0])).sum())
        self.above += int((chosen_N & (values_N > self.axis.edges[-1])).sum())
        shape = self.counts.shape
        flat_N = outcome_N[chosen_N] * shape[1] + bin_N[chosen_N]
        self.counts += np.bincount(flat_N, minlength=self.counts.size).reshape(shape)

    def _add_names(self, batch: Batch, outcome_N: Int64Array) -> None:
        encoded = batch.table[self.column.name].cast(pa.string()).combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        code_N = np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), np.int64)
        self.missing += int((batch.is_clip & (code_N < 0)).sum())
        for code, name in enumerate(names):
            counts = np.bincount(outcome_N[batch.is_clip & (code_N == code)], minlength=len(OUTCOMES))
            self.names[name] = self.names.get(name, np.zeros(len(OUTCOMES), np.int64)) + counts

    def as_json(self) -> dict[str, Any]:
        """Return the histogram as data of the page."""
        common = {"name": self.column.name, "doc": self.column.doc, "missing": self.missing}
        if self.axis is None:
            totals = {name: int(counts.sum()) for name, counts in self.names.items() if counts.sum()}
            names = sorted(totals, key=lambda name: (-totals[name], name))[:MAX_NAMES]
            counts = [[int(self.names[name][outcome]) for name in names] for outcome in range(len(OUTCOMES))]
            return {**common, "names": names, "counts": counts}
        return {
            **common,
            "below": self.below,
            "above": self.above,
            "edges": [round_significant(edge) for edge in self.axis.edges.tolist()],
            "log": self.axis.is_log,
            "counts": self.counts.tolist(),
        }


def drops_on(cause: Cause, column: MeasuredColumn) -> bool:
    """Return whether a cause is a threshold on this column. The reasons of `keep` begin with the column's name."""
    return (
        cause.fate == "dropped"
        and cause.reason.startswith(f"{column.name} ")
        and any(label == cause.step for label, _ in column.bounds)
    )
