"""Shards of an export: which clip goes into which, and carrying that out so that a kill at any moment costs nothing.

A shard that is there stays as it is. One of whose clips something else is said by now, or some of whose clips are not wanted any
more, is written anew under its name from its own bytes. New clips go into further shards. Then shards are numbered without gaps.
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
from pipelines.export.format import Sharded
from pipelines.export.steps import PackShards, RunTasks, run_step

PLAN = "plan.parquet"

CLIPS = "clips"
"""Folder of the clips that go into new shards."""

REWRITTEN, RENAMED = "rewritten", "renamed"
"""Files that say how far the plan is carried out: shards that were there have their content; they have their names."""

OLD, NEW = "old:", "new:"

MEMBER_BYTES = 4096
"""What a clip adds to a shard besides its file, about: headers, caption, description."""

KEY = b"worldloom.export"


def planned(work: str) -> dict[str, Any] | None:
    """The settings of an export that was stopped while it wrote shards; None where none was."""
    uri = storage.join(work, PLAN)
    settings: dict[str, Any] | None = (
        json.loads(storage.read_schema(uri).metadata[KEY])["settings"] if storage.exists(uri) else None
    )
    return settings


def make_plan(work: str, layout: Sharded, rows: pa.Table, before: pa.Table, settings: dict[str, Any]) -> None:
    """Decide which clip goes where and write it down: `old`, the shard a clip is in; `final`, the name of its shard in the end; `shard`,
    what is to be written, `old:NAME` for one that is written anew and `new:NAME`; null where nothing is to be done.
    """
    there = {row["uid"]: row for row in before.to_pylist() if row["file"]}
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    fresh: dict[str, list[dict[str, Any]]] = {}
    kept = rows.select(["uid", "split", "described", "cut_mode", "cut_size_bytes"]).sort_by("uid").to_pylist()
    for row in kept:
        if row["cut_mode"] is None:
            continue
        stored = there.get(row["uid"])
        if stored and stored["split"] == row["split"]:
            groups.setdefault(row["split"], {}).setdefault(stored["file"], []).append(row)
        else:
            fresh.setdefault(row["split"], []).append(row)
    counts = pc.value_counts(before["file"].combine_chunks().drop_null())
    size_of = {item["values"]: item["counts"] for item in counts.to_pylist()}
    places: dict[str, tuple[str | None, str | None, str]] = {}
    for split in sorted(set(groups) | set(fresh)):
        old = sorted(groups.get(split, {}).items())
        new = _fill(fresh.get(split, []), layout.shard_mb * 10**6)
        count = len(old) + len(new)
        for number, (name, members) in enumerate([*old, *((None, members) for members in new)]):
            final = layout.shard_file(split, number, count)
            same = (
                name is not None
                and len(members) == size_of[name]
                and all(there[row["uid"]]["described"] == row["described"] for row in members)
            )
            shard = None if same else f"{OLD}{name}" if name is not None else f"{NEW}{final}"
            places |= {row["uid"]: (shard, name, final) for row in members}
    for position, name in enumerate(("shard", "old", "final")):
        values = [places[uid][position] if uid in places else None for uid in rows["uid"].to_pylist()]
        rows = set_column(rows, pa.field(name, pa.string()), values)
    gone = sorted(set(size_of) - {old for _, old, _ in places.values()})
    about = {"settings": settings, "gone": gone}
    rows = rows.replace_schema_metadata({KEY: json.dumps(about).encode()})
    storage.write_table(storage.join(work, PLAN), rows, row_group_size=4096)


def _fill(rows: Sequence[dict[str, Any]], limit_bytes: int) -> list[list[dict[str, Any]]]:
    """Rows in order, in groups of at most this size."""
    groups: list[list[dict[str, Any]]] = []
    held = limit_bytes
    for row in rows:
        size = row["cut_size_bytes"] + MEMBER_BYTES
        if held + size > limit_bytes:
            groups.append([])
            held = 0
        groups[-1].append(row)
        held += size
    return groups


def carry_out(folder: str, work: str, layout: Sharded, run_tasks: RunTasks) -> None:
    """Do what the plan says, from wherever a run before was stopped; ends with the index."""
    plan = storage.read_table(storage.join(work, PLAN))
    about = json.loads(plan.schema.metadata[KEY])
    if not storage.exists(storage.join(work, REWRITTEN)):
        for name in about["gone"]:
            storage.remove(storage.join(folder, name))
        _pack(folder, work, layout, _to_write(plan, OLD), run_tasks)
        storage.write_bytes(storage.join(work, REWRITTEN), b"")
    if not storage.exists(storage.join(work, RENAMED)):
        _rename(folder, plan)
        storage.write_bytes(storage.join(work, RENAMED), b"")
    missing = [
        shard for shard in _to_write(plan, NEW) if not storage.exists(storage.join(folder, shard.removeprefix(NEW)))
    ]
    _pack(folder, work, layout, missing, run_tasks)
    plan = set_column(plan, pa.field("file", pa.string()), plan["final"])
    members = [
        layout.clip_file(row) if row["final"] else None
        for row in plan.select(["uid", "kind", "source", "final"]).to_pylist()
    ]
    plan = set_column(plan, pa.field("member", pa.string()), members)
    told = tables.conform(index.named_as_in_index(plan), index.INDEX)
    layout.finish(folder, told)
    index.write(folder, told, about["settings"])
    storage.remove(work)


def _to_write(plan: pa.Table, how: str) -> list[str]:
    return sorted({shard for shard in plan["shard"].to_pylist() if shard and shard.startswith(how)})


def _pack(folder: str, work: str, layout: Sharded, shards: list[str], run_tasks: RunTasks) -> None:
    if not shards:
        return
    step = PackShards(layout=layout, folder=folder, clips=storage.join(work, CLIPS), plan=storage.join(work, PLAN))
    uid = pa.field("uid", pa.string())
    tasks = [pa.table([pa.array([shard], pa.string())], pa.schema([uid])) for shard in shards]
    run_step(step, pa.schema([uid, *FATE_FIELDS]), storage.join(work, "packed"), tasks, len(shards), run_tasks)
    lost = [shard for shard in shards if not storage.exists(storage.join(folder, shard.partition(":")[2]))]
    if lost:
        raise RuntimeError(
            f"{folder}: {len(lost)} shards are not written, {lost[0].partition(':')[2]} first; run again"
        )


def _rename(folder: str, plan: pa.Table) -> None:
    """Give shards that were there their numbers. In rising order, as each moves to a smaller number or to another count."""
    pairs = {
        (row["final"], row["old"])
        for row in plan.select(["final", "old"]).to_pylist()
        if row["old"] and row["old"] != row["final"]
    }
    for final, old in sorted(pairs):
        # A run that was stopped here may have renamed this one, and then another one to its old name.
        if storage.exists(storage.join(folder, old)) and not storage.exists(storage.join(folder, final)):
            move(folder, old, final)


def move(folder: str, old: str, new: str) -> None:
    """Rename a file."""
    filesystem, source = storage.resolve(storage.join(folder, old))
    filesystem.move(source, storage.resolve(storage.join(folder, new))[1])
