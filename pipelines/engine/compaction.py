"""Compaction: the small parts of a finished table become few, so that later commands open few files.

Tasks are small, so that all cores have work and a kill costs little, and each writes a part. When a segment is
complete, its parts are joined to parts of about `TARGET_BYTES`. A kill leaves rows in an old part and in the new one,
of which readers count one and the next run removes the other (`table_index`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.large_tables import sort_by
from pipelines.engine import tables

TARGET_BYTES = 64 << 20
"""Size of the parts that are made. A removal of one clip rewrites one."""
N_THREADS = 4
"""Parts that are made at the same time; each takes some hundred megabytes of memory."""

COST_KEYS = ("cpu_s", "n_inputs", "steps")
"""Keys of a part's footer that hold the costs of its task."""


def compact(folder: str, input_column: str) -> None:
    """Join the small parts of a table whose segment is complete. Only the holder of the tables' lease may call it.

    It is done by threads of the calling process, since reading and writing take the time: it needs no worker.
    """
    entries = storage.list_files(folder, tables.PART_SUFFIX)
    groups = [[entry.uri for entry in group] for group in groups_of(entries, TARGET_BYTES)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        for _ in pool.map(partial(join_parts, input_column=input_column), groups):
            pass


def groups_of(entries: Sequence[storage.Entry], target_bytes: int) -> list[list[storage.Entry]]:
    """Return groups of small parts, each to be joined: neighbours by name, of about `target_bytes` together.

    Parts of more than half of it stay as they are, so that a table that grows is not written again and again.
    """
    groups: list[list[storage.Entry]] = [[]]
    n_bytes = 0
    for entry in (entry for entry in entries if entry.size_bytes <= target_bytes // 2):
        if n_bytes + entry.size_bytes > target_bytes:
            groups.append([])
            n_bytes = 0
        groups[-1].append(entry)
        n_bytes += entry.size_bytes
    return [group for group in groups if len(group) > 1]


def join_parts(parts: Sequence[str], input_column: str) -> str:
    """Write the rows of parts of one table as one part, sorted by uid, remove the parts, and return its URI.

    Rows of an input row that an earlier of the parts holds are left out: within one part they could not be told apart.
    """
    inputs: set[str] = set()
    kept, footers = [], []
    for part in parts:
        table = storage.read_table(part)
        footers.append(storage.parse_metadata(part, table.schema, tables.METADATA_KEY))
        table = table.replace_schema_metadata()
        kept.append(table.filter(pc.invert(pc.is_in(table[input_column], pa.array(sorted(inputs), pa.string())))))
        inputs.update(table[input_column].to_pylist())
    rows = sort_by(pa.concat_tables(kept), "uid")
    new = tables.write_part(parts[0].rpartition("/")[0], rows, join_footers(footers))
    for part in parts:
        if part != new:
            storage.remove(part)
    return new


def join_footers(footers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the footer of joined parts: that of each but for the costs, which are added."""
    joined = {key: value for key, value in footers[0].items() if key not in COST_KEYS}
    return joined | add_costs(footers) if any("cpu_s" in footer for footer in footers) else joined


def add_costs(footers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of the costs in the footers of parts, under `COST_KEYS`."""
    steps: dict[str, list[float]] = {}
    for footer in footers:
        for label, costs in footer.get("steps", {}).items():
            steps[label] = [a + b for a, b in zip(steps.get(label, [0] * len(costs)), costs, strict=True)]
    return {key: sum(footer.get(key, 0) for footer in footers) for key in ("cpu_s", "n_inputs")} | {"steps": steps}
