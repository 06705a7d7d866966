"""Measured columns of the last table, with the recipe's bounds on them and a sample of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.arrays import Float64Array
from pipelines.engine.segments import is_heavy
from pipelines.engine.step import FATE_COLUMNS
from pipelines.recipe import Recipe
from pipelines.report.batches import Batch
from pipelines.steps.keep import Bound, Keep

UNMEASURED_COLUMNS = frozenset(
    """
    uid source_uid size_bytes rotation_deg mirrored time_base_num time_base_den first_pts bit_depth source_duration_s
    start_pts end_pts clip_index clip_count shot_index width height fps n_tokens
    duplicate_distance duplicate_overlap
    """.split()  # noqa: SIM905  a list of words reads as one
) | frozenset(FATE_COLUMNS)
"""Columns of positions, sizes and bookkeeping. They get a histogram only if the recipe has a threshold on them."""

SAMPLE_SIZE = 20_000
"""Largest number of clips whose values decide the range of a histogram."""


@dataclass(frozen=True)
class MeasuredColumn:
    """A column with a measure of each clip, and the bounds on it as (label of the step, bound)."""

    name: str
    doc: str
    is_number: bool
    bounds: tuple[tuple[str, Bound], ...]

    @property
    def thresholds(self) -> list[float]:
        """All minima and maxima, sorted."""
        return sorted({value for _, bound in self.bounds for value in (bound.min, bound.max) if value is not None})


def measured_columns(recipe: Recipe, schema: pa.Schema) -> list[MeasuredColumn]:
    """Return the columns with a threshold in the recipe's order, then all other measured columns."""
    bounds: dict[str, list[tuple[str, Bound]]] = {}
    for label, step in zip(recipe.labels, recipe.curate, strict=True):
        if isinstance(step, Keep):
            for name, bound in step.bounds.items():
                bounds.setdefault(name, []).append((label, bound))
    names = [name for name in bounds if name in schema.names]
    for field in schema:
        measured = pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or field.name == "camera"
        if measured and field.name not in (*names, *UNMEASURED_COLUMNS) and not is_heavy(field):
            names.append(field.name)
    columns = []
    for name in names:
        field = schema.field(name)
        is_number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        if is_number or pa.types.is_string(field.type) or pa.types.is_boolean(field.type):
            doc = (field.metadata or {}).get(b"doc", b"").decode()
            columns.append(MeasuredColumn(name, doc, is_number, tuple(bounds.get(name, ()))))
    return columns


class ValueSample:
    """Values of the clips with the smallest uids.

    Uids are hashes, so the sample is random; it does not depend on how rows are divided into parts.
    """

    def __init__(self, names: Sequence[str], size: int = SAMPLE_SIZE) -> None:
        self._names, self._size = list(names), size
        self._pieces: list[pa.Table] = []
        self._n = 0

    def add(self, batch: Batch) -> None:
        """Add the clips of a batch."""
        arrays = {name: pa.array(batch.floats(name)) for name in self._names}
        rows = pa.table({"uid": batch.table["uid"], "kept": pa.array(batch.is_kept), **arrays})
        self._pieces.append(rows.filter(pa.array(batch.is_clip)))
        self._n += len(batch)
        if self._n > 2 * self._size:
            self._trim()

    def _trim(self) -> None:
        self._pieces = [pa.concat_tables(self._pieces).sort_by("uid").slice(0, self._size)]
        self._n = len(self._pieces[0])

    def values(self, name: str, only_kept: bool = False) -> Float64Array:
        """Return the finite values of a column, sorted; on request those of kept clips only."""
        self._trim()
        table = self._pieces[0].filter(self._pieces[0]["kept"]) if only_kept else self._pieces[0]
        values = table[name].to_numpy()
        return np.sort(values[np.isfinite(values)])


def round_significant(value: float | None, digits: int = 5) -> float | None:
    """Return a number with this many significant digits, or None if it is None or not finite."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
