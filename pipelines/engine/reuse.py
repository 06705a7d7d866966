"""Cached rows: values that were computed under other settings in the same `out` and are reused.

A stored row that passed a step carries the step's columns. A step of the same lineage in another recipe takes its
values from there, so that a new threshold or a new score costs only what is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from cluster.large_tables import first_of_each, positions, sort_by, take
from pipelines.engine import tables
from pipelines.engine.segments import Segment
from pipelines.engine.step import Expand, Global
from pipelines.engine.table_index import fates_of_table


@dataclass(frozen=True)
class CachedRows:
    """Stored rows that passed a step of the same lineage."""

    index: pa.Table
    """Columns uid and part, one row per uid."""

    def fetch(self, uids: pa.ChunkedArray, fields: list[pa.Field]) -> tuple[pa.Array, pa.Table]:
        """Return a mask of the uids that are stored, and a table with their values, in order."""
        position = positions(uids, self.index["uid"])
        found = pc.is_valid(position)
        stored = take(self.index, position.drop_null())
        names = [field.name for field in fields]
        pieces, order = [], []
        parts = stored["part"].to_pylist()
        uids = stored["uid"].to_pylist()
        for part in sorted(set(parts)):
            mine = [i for i, name in enumerate(parts) if name == part]
            pieces.append(tables.read_rows(part, [uids[i] for i in mine], names))
            order += mine
        if not pieces:
            return found, pa.table({field.name: pa.array([], field.type) for field in fields})
        inverse = pc.sort_indices(pa.array(order))
        return found, take(pa.concat_tables(pieces), inverse)


def find_cached_rows(tables_uri: str, segment: Segment) -> dict[str, CachedRows]:
    """Return the cached rows of each step label of a segment, for steps whose values other tables hold."""
    wanted = {
        lineage: label
        for label, step, lineage in zip(segment.labels, segment.steps, segment.lineages, strict=True)
        if step.writes() and not isinstance(step, Expand | Global)
    }
    found: dict[str, list[pa.Table]] = {}
    own = segment.folder(tables_uri) + "/"
    first_parts: dict[str, str] = {}
    for part in tables.step_parts(tables_uri):
        first_parts.setdefault(part.rpartition("/")[0], part)
    for folder, first in sorted(first_parts.items()):
        if (folder + "/").startswith(own):
            continue
        metadata = tables.read_metadata(first)
        labels, lineages = cast(list[str], metadata.get("labels", [])), cast(list[str], metadata.get("lineages", []))
        if not wanted.keys() & set(lineages):
            continue
        rows = fates_of_table(folder)
        for position, lineage in enumerate(lineages):
            if lineage in wanted:
                found.setdefault(wanted[lineage], []).append(_rows_past(rows, labels[position + 1 :]))
    return {
        label: CachedRows(first_of_each(sort_by(pa.concat_tables(pieces), "part"), "uid"))
        for label, pieces in found.items()
    }


def _rows_past(rows: pa.Table, later_labels: list[str]) -> pa.Table:
    """Return uid and part of the rows that were kept, or marked only by one of the later steps."""
    passed = pc.or_(
        pc.equal(rows["fate"], "kept"),
        pc.fill_null(pc.is_in(rows["fate_step"], pa.array(later_labels, pa.string())), False),
    )
    return rows.filter(passed).select(["uid", "part"])
