"""Bring an export up to date: cut missing clips, write them in the export's format, and write an index of all clips.

While an export runs, `.work` in its folder holds what is done: tables of clips that are cut, the files of those that
go into shards, and the plan of the shards. It is removed after the index is written, which is the last file of an
export.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from cluster.large_tables import positions, sort_by, take
from cluster.telemetry import log
from pipelines.engine import tables
from pipelines.engine.step import FATE_FIELDS, set_column
from pipelines.export import index, shard_plan
from pipelines.export.clip_files import CutSettings
from pipelines.export.export_steps import DIGEST_COLUMN, STORED_COLUMNS, CutClips, RunTasks, run_step
from pipelines.export.format import CUT_COLUMNS, Format, ShardedFormat

VERSION = 3
"""Version of how clips are cut; raise it when the same clip gets other bytes, so that stored clips are not reused."""

WORK = ".work"
STARTED = "started"
"""Marker file in `.work`: the folder is an export's, whatever else it holds after a run was stopped."""

Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class Target:
    """The folder, format and settings of an export."""

    folder: str
    format: Format
    cut: CutSettings
    split: Split

    @property
    def work(self) -> str:
        return storage.join(self.folder, WORK)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must be the same for an export to resume; the size of shards and `verify` may change."""
        cut = self.cut.model_dump(mode="json", exclude={"verify"})
        return {"version": VERSION, "format": self.format.name, "split": self.split, **cut}


@dataclass(frozen=True)
class Summary:
    """Counts of an export's clips by how they were written, and its failures."""

    folder: str
    n_copied: int
    n_encoded: int
    n_new: int
    """Clips that this run cut; earlier ones cut the others."""
    n_left_out: int
    size_bytes: int
    failures: tuple[tuple[str, str], ...]
    """(uid, error) of each clip that has no file."""

    @property
    def n_clips(self) -> int:
        return self.n_copied + self.n_encoded


def export(clips: pa.Table, target: Target, run_tasks: RunTasks) -> Summary:
    """Bring an export up to date with the selected clips (`select_clips`); only clips without a file are cut.

    Files appear under their names when they are whole, and the index is written last. Clips that failed in an earlier
    export are tried again. Files of clips that are no longer selected are removed. Raises `ConfigError` if the folder
    holds an export with other settings, or files of something else.
    """
    pending = shard_plan.pending_settings(target.work)
    _check_settings(target, pending)
    if pending and isinstance(target.format, ShardedFormat):
        # A run was stopped after all clips were cut: its plan is finished first, so that the names of shards are final.
        log.info(f"{target.folder}: an export was stopped while it wrote shards; these are finished first")
        shard_plan.execute_plan(target.folder, target.work, target.format, run_tasks)
    listed, settings = index.read(target.folder)
    _check_settings(target, settings)
    _check_crops(target, clips, listed)
    files = {entry.uri for entry in storage.list_files(target.folder)}
    if files and not settings and not any(uri.startswith(target.work + "/") for uri in files):
        raise ConfigError(f"{target.folder} is not empty and holds no export; choose another --out")
    storage.write_bytes(storage.join(target.work, STARTED), b"")
    exists = [bool(file) and storage.join(target.folder, file) in files for file in listed["file"].to_pylist()]
    before = listed.filter(pa.array(exists, pa.bool_()))
    clips = _with_left_out_reasons(clips, target.format)
    n_new = _cut_missing(clips, before, target, run_tasks)
    rows = _with_results(clips, _results(target, before))
    if isinstance(target.format, ShardedFormat):
        shard_plan.write_plan(target.work, target.format, rows, before, target.settings)
        shard_plan.execute_plan(target.folder, target.work, target.format, run_tasks)
    else:
        _finish_files(rows, listed, target)
    return summarize(target.folder, n_new)


def _check_settings(target: Target, settings: Mapping[str, Any] | None) -> None:
    """Raise `ConfigError` if the stored settings of an export differ from the target's."""
    stored, now = settings or {}, target.settings
    changed = [f"{name}: {stored[name]}, now {now.get(name)}" for name in stored if stored[name] != now.get(name)]
    if changed:
        raise ConfigError(
            f"{target.folder} holds an export with other settings ({', '.join(changed)}); "
            "choose another --out, or remove it"
        )


def _check_crops(target: Target, clips: pa.Table, listed: pa.Table) -> None:
    """Raise `ConfigError` if clips that are exported have another crop now, since their files would be wrong."""
    exported = listed.filter(pc.is_valid(listed["file"]))
    crops = dict(zip(exported["uid"].to_pylist(), exported["crop"].to_pylist(), strict=True))
    now = zip(clips["uid"].to_pylist(), clips["crop"].to_pylist(), strict=True) if "crop" in clips.column_names else ()
    n_changed = sum(crop != crops.get(uid, crop) for uid, crop in now)
    if n_changed:
        raise ConfigError(
            f"{target.folder} holds {n_changed} clips with another crop than they have now (bars of cut); choose "
            "another --out, or remove it"
        )


def _with_left_out_reasons(clips: pa.Table, export_format: Format) -> pa.Table:
    """Return the clips with the reason for which each is left out; null for those that are exported."""

    def reason(kind: str, split: str | None) -> str | None:
        if kind not in export_format.kinds:
            return f"{export_format.name} takes no {kind}s"
        return "left out: in no split" if split is None else None

    reasons = list(map(reason, clips["kind"].to_pylist(), clips["split"].to_pylist()))
    return set_column(clips, pa.field("left_out_reason", pa.string()), reasons)


def _cut_missing(clips: pa.Table, before: pa.Table, target: Target, run_tasks: RunTasks) -> int:
    """Cut the clips without a file, and rewrite sidecars with outdated descriptions; returns how many clips were cut.

    Raises `RuntimeError` if a clip has neither a file nor an error afterwards.
    """
    is_sharded = isinstance(target.format, ShardedFormat)
    stored = _stored_columns(clips["uid"], before)
    for field in STORED_COLUMNS:
        clips = set_column(clips, field, stored[field.name])
    # A shard's descriptions are written with the shard, so its clips are only needed as files to move to another split.
    column = "split" if is_sharded else "description_digest"
    is_current = pc.fill_null(pc.equal(stored[column], clips[column]), False)
    keys = ["uid"] if is_sharded else ["uid", "description_digest"]
    finished = set(_key_tuples(_cut_rows(target), keys))
    is_pending = pa.array([key not in finished for key in _key_tuples(clips, keys)], pa.bool_())
    is_missing = pc.and_(pc.is_null(clips["left_out_reason"]), pc.and_(pc.invert(is_current), is_pending))
    missing = clips.filter(is_missing)
    if not len(missing):
        return 0
    # Clips of one file are in few tasks, so that it is opened seldom.
    sort_keys = [("source", "ascending"), ("start_pts", "ascending"), ("uid", "ascending")]
    missing = sort_by(missing, sort_keys)
    step = CutClips(format=target.format, cut=target.cut, folder=_clips_folder(target), stored=target.folder)
    size = tables.task_size(len(missing), step.rows_per_part)
    tasks = [missing.slice(start, size).combine_chunks() for start in range(0, len(missing), size)]
    run_step(step, _cut_schema(), _cut_folder(target), tasks, len(missing), run_tasks)
    without_result = set(missing["uid"].to_pylist()) - set(_cut_rows(target)["uid"].to_pylist())
    if without_result:
        raise RuntimeError(f"{target.folder}: {len(without_result)} clips have no result; run again")
    return int(pc.sum(pc.is_null(missing["stored_file"])).as_py())


def _key_tuples(rows: pa.Table, names: list[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[name].to_pylist() for name in names), strict=True))


def _stored_columns(uids: pa.ChunkedArray, before: pa.Table) -> pa.Table:
    """Return `STORED_COLUMNS`, digest and split of these clips in the index; null for clips without a file."""
    with_file = before.filter(pc.is_valid(before["file"]))
    found = take(with_file, positions(uids, with_file["uid"]))
    values = {field.name: found[field.name.removeprefix("stored_")] for field in STORED_COLUMNS}
    return pa.table({**values, "description_digest": found["description_digest"], "split": found["split"]})


def _cut_folder(target: Target) -> str:
    """Return the folder of the table of clips that are cut."""
    return storage.join(target.work, f"cut-{storage.digest(repr(target.settings), size_bytes=8)}")


def _clips_folder(target: Target) -> str:
    """Return the folder that clips are cut to."""
    is_sharded = isinstance(target.format, ShardedFormat)
    return storage.join(target.work, shard_plan.CLIPS) if is_sharded else target.folder


def _cut_schema() -> pa.Schema:
    return pa.schema([pa.field("uid", pa.string()), *FATE_FIELDS, DIGEST_COLUMN, *CUT_COLUMNS])


def _cut_rows(target: Target) -> pa.Table:
    """Return a row per clip and description that this run, or stopped runs before it, have cut."""
    schema = _cut_schema()
    parts = storage.list_files(_cut_folder(target), tables.PART_SUFFIX)
    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        rows = list(pool.map(lambda part: tables.conform(storage.read_table(part.uri), schema), parts))
    return pa.concat_tables([schema.empty_table(), *rows])


def _results(target: Target, before: pa.Table) -> dict[str, dict[str, Any]]:
    """Return each clip's newest result by uid: `CUT_COLUMNS`, or its error. Clips cut since replace those of the
    index.
    """
    with_file = before.filter(pc.is_valid(before["file"]))
    results = {
        row["uid"]: {field.name: row[field.name.removeprefix("cut_")] for field in CUT_COLUMNS}
        for row in with_file.to_pylist()
    }
    for row in _cut_rows(target).to_pylist():
        values = {field.name: row[field.name] for field in CUT_COLUMNS}
        results[row["uid"]] = values if row["fate"] == "kept" else {"error": row["fate_reason"]}
    return results


def _with_results(clips: pa.Table, results: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Return the clips with `CUT_COLUMNS` and `error`; of a clip that is left out, only `cut_reason` is not null."""
    reasons = zip(clips["uid"].to_pylist(), clips["left_out_reason"].to_pylist(), strict=True)
    found = [{"cut_reason": reason} if reason else results[uid] for uid, reason in reasons]
    for field in (*CUT_COLUMNS, pa.field("error", pa.string())):
        clips = set_column(clips, field, [result.get(field.name) for result in found])
    return clips.drop_columns(["left_out_reason"])


def _finish_files(rows: pa.Table, listed: pa.Table, target: Target) -> None:
    """Remove the files of clips that are no longer selected, and write the export's metadata and its index."""
    files = [target.format.clip_file(row) if row["cut_mode"] else None for row in rows.to_pylist()]
    rows = set_column(rows, pa.field("file", pa.string()), files)
    kept = set(files)
    for row in rows.filter(pc.is_valid(rows["file"])).to_pylist():
        kept |= set(target.format.sidecars(row))
    for row in listed.filter(pc.is_valid(listed["file"])).to_pylist():
        for name in {row["file"], *target.format.sidecars(row)} - kept:
            storage.remove(storage.join(target.folder, name))
    indexed = tables.conform(index.without_cut_prefix(rows), index.SCHEMA)
    target.format.write_metadata(target.folder, indexed)
    index.write(target.folder, indexed, target.settings)
    storage.remove(target.work)


def summarize(folder: str, n_new: int = 0) -> Summary:
    """Return the counts and failures in the index of an export."""
    rows, _ = index.read(folder)
    modes = Counter(rows["mode"].to_pylist())
    failed = rows.filter(pc.is_valid(rows["error"]))
    failures = tuple(zip(failed["uid"].to_pylist(), failed["error"].to_pylist(), strict=True))
    return Summary(
        folder,
        n_copied=modes["copied"],
        n_encoded=modes["encoded"],
        n_new=n_new,
        n_left_out=modes[None] - len(failures),
        size_bytes=int(pc.sum(rows["size_bytes"]).as_py() or 0),
        failures=failures,
    )
