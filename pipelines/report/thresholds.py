"""Thresholds of the recipe: the clips that each one drops, and the clips whose values are nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.report.batches import Batch, SmallestRows
from pipelines.report.causes import Cause
from pipelines.report.columns import MeasuredColumn
from pipelines.report.funnel import MICROSECONDS_PER_HOUR, RowTotal
from pipelines.steps.keep import Bound


@dataclass(frozen=True)
class BoundSide:
    """One side of a bound."""

    name: str
    """`min`, `max`, or `in` for a bound on names."""
    limit: float | None
    """None for a bound on names."""
    condition: str
    """Condition under which a clip is dropped, in the words of the fate reason: `under 0.02`."""
    bound: Bound
    """The bound without its other sides."""


def bound_sides(bound: Bound) -> list[BoundSide]:
    """Return the sides of a bound in the order in which `keep` checks them."""
    sides = []
    if bound.among is not None:
        condition = f"not one of {', '.join(map(str, bound.among))}"
        sides.append(BoundSide("in", None, condition, Bound.model_validate({"in": bound.among})))
    if bound.min is not None:
        sides.append(BoundSide("min", bound.min, f"under {bound.min:g}", Bound(min=bound.min)))
    if bound.max is not None:
        sides.append(BoundSide("max", bound.max, f"over {bound.max:g}", Bound(max=bound.max)))
    return sides


@dataclass
class Threshold:
    """One side of a bound on a column, with the nearest clips that it dropped and the nearest kept clips."""

    label: str
    """Label of the `keep` step."""
    column: MeasuredColumn
    side: BoundSide
    dropped: SmallestRows
    kept: SmallestRows

    def add(self, batch: Batch) -> None:
        """Add the clips of a batch."""
        codes_N, causes = batch.causes
        dropped_N = np.array([self.drops(cause) for cause in causes], np.bool_)[codes_N] & batch.is_clip
        if self.side.limit is None:
            self.dropped.add(batch, dropped_N, batch.uids)
            return
        gap_N = np.abs(batch.floats(self.column.name) - self.side.limit)
        self.dropped.add(batch, dropped_N, np.where(np.isnan(gap_N), np.inf, gap_N))
        self.kept.add(batch, batch.is_kept & batch.is_clip & ~np.isnan(gap_N), gap_N)

    def drops(self, cause: Cause) -> bool:
        """Return whether this threshold is the cause of a fate.

        A reason on names holds the name itself, so any such reason on the column belongs to its one bound.
        """
        if cause.fate != "dropped" or cause.step != self.label:
            return False
        if self.side.limit is None:
            return cause.reason.startswith(f"{self.column.name} is ")
        return cause.reason == f"{self.column.name} {self.side.condition}"

    def as_json(self, causes: Mapping[Cause, RowTotal]) -> dict[str, Any]:
        """Return the threshold as data of the page, with the number and hours of the clips that it drops."""
        dropped = [total for cause, total in causes.items() if self.drops(cause)]
        return {
            "label": self.label,
            "column": self.column.name,
            "side": self.side.name,
            "limit": self.side.limit,
            "condition": self.side.condition,
            "dropped": sum(total.rows for total in dropped),
            "hours": sum(total.microseconds for total in dropped) / MICROSECONDS_PER_HOUR,
        }


def make_thresholds(columns: Sequence[MeasuredColumn], n_nearest: int) -> list[Threshold]:
    """Return every side of every bound, each with room for `n_nearest` dropped and `n_nearest` kept clips."""
    return [
        Threshold(label, column, side, SmallestRows(n_nearest), SmallestRows(n_nearest))
        for column in columns
        for label, bound in column.bounds
        for side in bound_sides(bound)
    ]
