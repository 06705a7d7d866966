"""The plan of an export's shards: which clip goes into which, and its execution, which can be killed and resumed at
any point.

A shard whose clips and their descriptions are unchanged stays. One that lost clips, or whose clips have new
descriptions, is rewritten under its name from its own bytes. New clips go into further shards. Then shards are
numbered without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from pipelines.engine import tables
from pipelines.engine.step import FATE_FIELDS, set_column
from pipelines.export import index
from pipelines.export.export_steps import NEW, REWRITE, PackShards, RunTasks, run_step
from pipelines.export.format import ShardedFormat
from pipelines.export.index import METADATA_KEY

PLAN = "plan.parquet"

CLIPS = "clips"
"""Folder of the clips that go into new shards."""

REWRITTEN, RENAMED = "rewritten", "renamed"
"""Marker files: all existing shards are rewritten; all of them have their final names."""

MEMBER_OVERHEAD_BYTES = 4096
"""Approximate bytes that a clip adds to a shard besides its file: headers, caption, description."""


def pending_settings(work: str) -> dict[str, Any] | None:
    """Return the settings of an export that was stopped while it wrote shards; None if none was."""
    uri = storage.join(work, PLAN)
    if not storage.exists(uri):
        return None
    settings: dict[str, Any] = storage.parse_metadata(uri, storage.read_schema(uri), METADATA_KEY)["settings"]
    return settings


def write_plan(
    work: str, export_format: ShardedFormat, rows: pa.Table, before: pa.Table, settings: dict[str, Any]
) -> None:
    """Assign every clip to a shard and store the plan.

    `rows` are the clips with `CUT_COLUMNS`, `before` the rows of the index whose files exist. The plan has the rows
    with `current_file`, the shard that holds the clip now; `final_file`, its shard's final name; and `pending_shard`,
    the shard to write, `rewrite:NAME` or `new:NAME`, null if its shard stays as it is.
    """
    stored = {row["uid"]: row for row in before.to_pylist() if row["file"]}
    by_shard: dict[str, dict[str, list[dict[str, Any]]]] = {}
    new: dict[str, list[dict[str, Any]]] = {}
    columns = ["uid", "split", "description_digest", "cut_mode", "cut_size_bytes"]
    for row in rows.select(columns).sort_by("uid").to_pylist():
        if row["cut_mode"] is None:
            continue
        known = stored.get(row["uid"])
        if known and known["split"] == row["split"]:
            by_shard.setdefault(row["split"], {}).setdefault(known["file"], []).append(row)
        else:
            new.setdefault(row["split"], []).append(row)
    counts = pc.value_counts(before["file"].combine_chunks().drop_null())
    n_stored = {item["values"]: item["counts"] for item in counts.to_pylist()}
    assigned: dict[str, tuple[str | None, str | None, str]] = {}
    for split in sorted(set(by_shard) | set(new)):
        existing = sorted(by_shard.get(split, {}).items())
        further = _group_by_size(new.get(split, []), export_format.shard_mb * 10**6)
        shards = [*existing, *((None, members) for members in further)]
        for number, (name, members) in enumerate(shards):
            final = export_format.shard_file(split, number, len(shards))
            unchanged = (
                name is not None
                and len(members) == n_stored[name]
                and all(stored[row["uid"]]["description_digest"] == row["description_digest"] for row in members)
            )
            pending = None if unchanged else f"{NEW}{final}" if name is None else f"{REWRITE}{name}"
            assigned |= {row["uid"]: (pending, name, final) for row in members}
    for position, column in enumerate(("pending_shard", "current_file", "final_file")):
        values = [assigned[uid][position] if uid in assigned else None for uid in rows["uid"].to_pylist()]
        rows = set_column(rows, pa.field(column, pa.string()), values)
    obsolete = sorted(set(n_stored) - {current for _, current, _ in assigned.values()})
    metadata = {METADATA_KEY: json.dumps({"settings": settings, "obsolete": obsolete}).encode()}
    storage.write_table(storage.join(work, PLAN), rows.replace_schema_metadata(metadata), row_group_size=4096)


def _group_by_size(rows: Sequence[dict[str, Any]], limit_bytes: int) -> list[list[dict[str, Any]]]:
    """Return the rows in order, in groups of at most `limit_bytes`; a larger clip is a group of its own."""
    groups: list[list[dict[str, Any]]] = []
    group_bytes = limit_bytes
    for row in rows:
        size = row["cut_size_bytes"] + MEMBER_OVERHEAD_BYTES
        if group_bytes + size > limit_bytes:
            groups.append([])
            group_bytes = 0
        groups[-1].append(row)
        group_bytes += size
    return groups


def execute_plan(folder: str, work: str, export_format: ShardedFormat, run_tasks: RunTasks) -> None:
    """Execute the stored plan from where an earlier run was stopped; the index is written last.

    Raises `RuntimeError` if shards could not be written.
    """
    plan = storage.read_table(storage.join(work, PLAN))
    about = storage.parse_metadata(storage.join(work, PLAN), plan.schema, METADATA_KEY)
    if not storage.exists(storage.join(work, REWRITTEN)):
        for name in about["obsolete"]:
            storage.remove(storage.join(folder, name))
        _pack(folder, work, export_format, _pending_shards(plan, REWRITE), run_tasks)
        storage.write_bytes(storage.join(work, REWRITTEN), b"")
    if not storage.exists(storage.join(work, RENAMED)):
        _rename_shards(folder, plan)
        storage.write_bytes(storage.join(work, RENAMED), b"")
    missing = [
        shard
        for shard in _pending_shards(plan, NEW)
        if not storage.exists(storage.join(folder, shard.removeprefix(NEW)))
    ]
    _pack(folder, work, export_format, missing, run_tasks)
    plan = set_column(plan, pa.field("file", pa.string()), plan["final_file"])
    columns = ["uid", "kind", "source", "final_file"]
    members = [export_format.clip_file(row) if row["final_file"] else None for row in plan.select(columns).to_pylist()]
    plan = set_column(plan, pa.field("member", pa.string()), members)
    rows = tables.conform(index.without_cut_prefix(plan), index.SCHEMA)
    export_format.write_metadata(folder, rows)
    index.write(folder, rows, about["settings"])
    storage.remove(work)


def _pending_shards(plan: pa.Table, prefix: str) -> list[str]:
    return sorted({shard for shard in plan["pending_shard"].to_pylist() if shard and shard.startswith(prefix)})


def _pack(folder: str, work: str, export_format: ShardedFormat, shards: list[str], run_tasks: RunTasks) -> None:
    """Write shards, a task per shard. Raises `RuntimeError` if one is not there afterwards."""
    if not shards:
        return
    step = PackShards(
        format=export_format, folder=folder, clips=storage.join(work, CLIPS), plan=storage.join(work, PLAN)
    )
    uid = pa.field("uid", pa.string())
    tasks = [pa.table([pa.array([shard], pa.string())], pa.schema([uid])) for shard in shards]
    run_step(step, pa.schema([uid, *FATE_FIELDS]), storage.join(work, "packed"), tasks, len(shards), run_tasks)
    names = [shard.partition(":")[2] for shard in shards]
    missing = [name for name in names if not storage.exists(storage.join(folder, name))]
    if missing:
        raise RuntimeError(f"{folder}: {len(missing)} shards could not be written, {missing[0]} first; run again")


def _rename_shards(folder: str, plan: pa.Table) -> None:
    """Give existing shards their final names, in rising order: each gets a smaller number or another shard count."""
    pairs = {
        (row["final_file"], row["current_file"])
        for row in plan.select(["final_file", "current_file"]).to_pylist()
        if row["current_file"] and row["current_file"] != row["final_file"]
    }
    for final, current in sorted(pairs):
        # A stopped run may have renamed this shard, and then another one to its old name.
        if storage.exists(storage.join(folder, current)) and not storage.exists(storage.join(folder, final)):
            rename(folder, current, final)


def rename(folder: str, old: str, new: str) -> None:
    filesystem, source = storage.resolve(storage.join(folder, old))
    filesystem.move(source, storage.resolve(storage.join(folder, new))[1])
