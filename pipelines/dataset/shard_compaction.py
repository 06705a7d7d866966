"""Compaction of latent shards: the small shards that tasks of `encode` write become few.

Tasks are small, so that all workers have work and a kill costs little, and each writes a shard for each of its buckets.
Before a manifest is written, small shards of a bucket are joined to shards of about `TARGET_BYTES`. A shard that a
manifest names stays as it is, so that no manifest changes, and no run that trains on it.

A kill loses nothing: the plan is written first, and what was joined is removed when the manifest and the index that
name the new shards are complete. The plan is removed last.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.resources import Resources
from cluster.storage import Entry
from cluster.telemetry import log, progress
from pipelines import inline
from pipelines.engine import tables
from pipelines.engine.compaction import groups_of
from pipelines.engine.executor import Executor
from pipelines.engine.step import RunError, TableFunction
from training.data.shard_joining import join_shards

TARGET_BYTES = 256 << 20
"""Size of the shards that are made. A removal of one clip rewrites one, and a worker holds one in memory."""
MAX_LOCAL_BYTES = 1 << 30
"""Bytes up to which this process joins shards itself: Ray would take seconds to start."""
PLAN_FILE = "_joining.json"
"""File beside the shards with the plan that is not finished yet."""

TASK_SCHEMA = pa.schema([("shard", pa.string()), ("parts", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Compaction:
    """The joining of small shards of a folder."""

    folder: str
    plan: Mapping[str, Sequence[str]]
    """The names of the shards that are joined, by the name of the shard they are joined to, below the folder."""

    @property
    def joined(self) -> frozenset[str]:
        """URIs of the shards whose rows are in others now. No manifest may name them."""
        return frozenset(storage.join(self.folder, part) for parts in self.plan.values() for part in parts)

    def finish(self) -> None:
        """Remove the joined shards, once the manifest and the index of the others are complete, and then the plan."""
        with ThreadPoolExecutor(storage.READER_THREADS) as pool:
            for _ in pool.map(storage.remove, sorted(self.joined)):
                pass
        storage.remove(storage.join(self.folder, PLAN_FILE))


def is_unfinished(folder: str) -> bool:
    """Return whether a run was stopped while it joined the shards of a folder."""
    return storage.exists(storage.join(folder, PLAN_FILE))


def compact_shards(folder: str, tables_uri: str, executor: Executor) -> Compaction:
    """Join the small shards of a folder that no manifest names; only the holder of the tables' lease may call it.

    What was joined stays until `Compaction.finish`. Raises `RunError` if a shard cannot be read or written.
    """
    entries = storage.list_files(folder, tables.PART_SUFFIX)
    sizes = {entry.uri.removeprefix(f"{folder}/"): entry.size_bytes for entry in entries}
    plan = _read_plan(folder)
    planned = set(plan).union(*plan.values())
    named = {storage.join(tables_uri, file) for file in _named_files(tables_uri)}
    new = _new_groups(folder, [entry for entry in entries if entry.uri not in named], planned)
    if new:
        plan = {**plan, **new}
        storage.write_bytes(storage.join(folder, PLAN_FILE), json.dumps(plan, indent=1).encode())
    # `forget` removes a shard that has no rows left.
    left = {shard: [part for part in parts if part in sizes] for shard, parts in plan.items()}
    pending = {shard: parts for shard, parts in left.items() if parts and shard not in sizes}
    if pending:
        parts = [part for parts in pending.values() for part in parts]
        n_bytes = sum(sizes[part] for part in parts)
        log.info(f"{len(parts)} small shards, {n_bytes / 1e6:,.1f} MB, are joined to {len(pending)}")
        _join(folder, pending, inline if n_bytes <= MAX_LOCAL_BYTES else executor)
    return Compaction(folder, plan)


def _read_plan(folder: str) -> dict[str, list[str]]:
    uri = storage.join(folder, PLAN_FILE)
    if not storage.exists(uri):
        return {}
    found = storage.read_json(uri)
    if not isinstance(found, dict):
        raise ValueError(f"{uri}: is no plan of shards to join; remove it, and run the same command again")
    return found


def _named_files(tables_uri: str) -> set[str]:
    """Return the shards that manifests name, relative to the tables."""
    uris = tables.manifests(tables_uri)
    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        found = pool.map(lambda uri: pc.unique(storage.read_table(uri, ["file"])["file"]).to_pylist(), uris)
        return set[str]().union(*found)


def _new_groups(folder: str, entries: Sequence[Entry], planned: Collection[str]) -> dict[str, list[str]]:
    """Return the groups of small shards that no plan has yet, by the name of the shard that each is joined to.

    Shards are named by their rows, so the same shards give the same groups and names.
    """
    found = {}
    for bucket, of_bucket in groupby(entries, lambda entry: entry.uri.rpartition("/")[0]):
        free = [entry for entry in of_bucket if entry.uri.removeprefix(f"{folder}/") not in planned]
        for group in groups_of(free, TARGET_BYTES):
            parts = [entry.uri.removeprefix(f"{folder}/") for entry in group]
            name = f"part-{storage.digest(*parts)}{tables.PART_SUFFIX}"
            found[storage.join(bucket, name).removeprefix(f"{folder}/")] = parts
    return found


def _join(folder: str, pending: Mapping[str, Sequence[str]], executor: Executor) -> None:
    tasks = [pa.table({"shard": [shard], "parts": [parts]}, TASK_SCHEMA) for shard, parts in pending.items()]
    with progress("joining shards", len(tasks)) as bar:
        for _ in executor.map_tables(_Joining(folder).open, tasks, Resources()):
            bar.advance()


@dataclass(frozen=True)
class _Joining:
    """The joining of groups of shards of a folder, by any worker."""

    folder: str

    def open(self) -> TableFunction:
        return self._join

    def _join(self, task: pa.Table) -> pa.Table:
        (row,) = task.to_pylist()
        uri = storage.join(self.folder, row["shard"])
        try:
            join_shards(uri, [storage.join(self.folder, part) for part in row["parts"]])
        except Exception as error:
            raise RunError(f"{uri}: {len(row['parts'])} shards cannot be joined to it: {error}") from error
        return task.select(["shard"])
