"""Compaction: the small parts of a finished table become few, so that later commands open few files.

Tasks are small, so that all cores have work and a kill costs little, and each writes a part. When a segment is
complete, its parts are joined to parts of about `TARGET_BYTES`. A kill leaves rows in an old part and in the new one,
of which readers count one and the next run removes the other (`table_index`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa

from cluster import storage
from cluster.resources import Resources
from cluster.telemetry import log
from pipelines.engine import tables
from pipelines.engine.executor import Executor
from pipelines.engine.step import TableFunction

TARGET_BYTES = 64 << 20
"""Size of the parts that are made. A removal of one clip rewrites one."""
MAX_JOINED_BYTES = TARGET_BYTES // 2
"""Parts above this size stay as they are, so that a table that grows is not written again and again."""

COST_KEYS = ("cpu_s", "n_inputs", "steps")
"""Keys of a part's footer that hold the costs of its task."""


def compact(folder: str, executor: Executor) -> None:
    """Join the small parts of a table whose segment is complete. Only the holder of the tables' lease may call it."""
    groups = groups_of(storage.list_files(folder, tables.PART_SUFFIX))
    if not groups:
        return
    tasks = [pa.table({"part": [entry.uri for entry in group]}) for group in groups]
    joined = sum(len(table) for table in executor.map_tables(_open_joiner, tasks, Resources()))
    log.debug(f"{folder}: {sum(map(len, groups))} parts are {joined} now")


def groups_of(entries: Sequence[storage.Entry]) -> list[list[storage.Entry]]:
    """Return groups of small parts, each to be joined: neighbours by name, of about `TARGET_BYTES` together."""
    groups: list[list[storage.Entry]] = [[]]
    for entry in (entry for entry in entries if entry.size_bytes <= MAX_JOINED_BYTES):
        if sum(other.size_bytes for other in groups[-1]) + entry.size_bytes > TARGET_BYTES:
            groups.append([])
        groups[-1].append(entry)
    return [group for group in groups if len(group) > 1]


def _open_joiner() -> TableFunction:
    return lambda task: pa.table({"part": [join_parts(task["part"].to_pylist())]})


def join_parts(parts: Sequence[str]) -> str:
    """Write the rows of parts of one table as one part, sorted by uid, remove the parts, and return its URI."""
    read = [storage.read_table(part) for part in parts]
    rows = pa.concat_tables([table.replace_schema_metadata() for table in read]).sort_by("uid")
    new = tables.write_part(parts[0].rpartition("/")[0], rows, join_footers([tables.read_metadata(p) for p in parts]))
    for part in parts:
        if part != new:
            storage.remove(part)
    return new


def join_footers(footers: Sequence[Mapping[str, object]]) -> dict[str, Any]:
    """Return the footer of joined parts: that of each but for the costs, which are added."""
    joined: dict[str, Any] = {key: value for key, value in footers[0].items() if key not in COST_KEYS}
    with_costs = [footer for footer in footers if "cpu_s" in footer]
    if not with_costs:
        return joined
    steps: dict[str, Counter[int]] = {}
    for footer in with_costs:
        for label, costs in cast(Mapping[str, Sequence[float]], footer.get("steps", {})).items():
            steps.setdefault(label, Counter()).update(dict(enumerate(costs)))
    sums = {key: sum(cast(float, footer.get(key, 0)) for footer in with_costs) for key in ("cpu_s", "n_inputs")}
    return joined | sums | {"steps": {label: [costs[i] for i in range(3)] for label, costs in steps.items()}}
