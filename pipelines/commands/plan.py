"""What a row of a segment cost before, as the tables remember it."""

from __future__ import annotations

from typing import cast

from cluster import storage
from pipelines.engine import tables


def cpu_per_row(tables_uri: str) -> dict[str, float | None]:
    """CPU seconds per input row of each segment, averaged over all its tables in this `out`."""
    seconds: dict[str, float] = {}
    rows: dict[str, int] = {}
    for entry in storage.list_files(tables_uri, tables.PART_SUFFIX):
        about = tables.read_metadata(entry.uri)
        if "cpu_s" in about:
            label = cast(str, about["segment"])
            seconds[label] = seconds.get(label, 0.0) + cast(float, about["cpu_s"])
            rows[label] = rows.get(label, 0) + cast(int, about["n_inputs"])
    return {label: seconds[label] / rows[label] if rows[label] else None for label in seconds}
