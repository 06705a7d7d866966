"""Drive an export: cut what is not there yet, put it in its layout, and say in an index what became of every clip.

In the export's folder, `.work` holds what a run that was stopped has done: tables of clips that are cut, the files of those that
go into shards, and the plan of the shards. It goes when the index is written, which is the last thing that happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.engine import tables
from pipelines.engine.step import FATE_FIELDS, set_column
from pipelines.export import index, shards
from pipelines.export.clip_files import CutSettings
from pipelines.export.format import CUT, Format, Sharded
from pipelines.export.steps import DESCRIBED, STORED, CutClips, RunTasks, run_step

VERSION = 1
"""Raise it when the same clip is cut otherwise, so that what is stored is not taken for it."""

WORK = ".work"
BEGUN = "begun"

Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class Target:
    """Where an export goes and how it is made."""

    folder: str
    layout: Format
    cut: CutSettings
    split: Split

    @property
    def work(self) -> str:
        return storage.join(self.folder, WORK)

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for an export to go on; not how large shards are, nor whether clips are verified."""
        cut = self.cut.model_dump(mode="json", exclude={"verify"})
        return {"version": VERSION, "format": self.layout.name, "split": self.split, **cut}


@dataclass(frozen=True)
class Summary:
    """What an export came to. `n_new` clips were cut in this run, the others before."""

    folder: str
    n_copied: int
    n_encoded: int
    n_new: int
    n_left_out: int
    size_bytes: int
    failures: tuple[tuple[str, str], ...]
    """(uid, error) of each clip that has no file."""

    @property
    def n_clips(self) -> int:
        return self.n_copied + self.n_encoded


def export(clips: pa.Table, target: Target, run_tasks: RunTasks) -> Summary:
    """Bring an export up to date with the clips that are wanted (`wanted_clips`): only what is not there yet is cut.

    Files appear under their names when they are whole, and the index comes last. Clips that failed in an earlier export are tried
    again. What is no longer wanted goes. Raises `ConfigError` where the folder holds an export with other settings, or other things.
    """
    begun = shards.planned(target.work)
    _check_settings(target, begun)
    if begun and isinstance(target.layout, Sharded):
        # A run was stopped after all was cut: what it began is ended first, so that every name means what it says.
        log.info(f"{target.folder}: a run was stopped while it wrote shards; these are finished first")
        shards.carry_out(target.folder, target.work, target.layout, run_tasks)
    listed, settings = index.read(target.folder)
    _check_settings(target, settings)
    there = {entry.uri for entry in storage.list_files(target.folder)}
    if there and not settings and not any(uri.startswith(target.work + "/") for uri in there):
        raise ConfigError(f"{target.folder} is not empty, and what is in it is no export; choose another --out")
    # From here on the folder is known for an export's, whatever it holds when a run is stopped.
    storage.write_bytes(storage.join(target.work, BEGUN), b"")
    before = listed.filter(
        pa.array(
            [bool(file) and storage.join(target.folder, file) in there for file in listed["file"].to_pylist()],
            pa.bool_(),
        )
    )
    clips = _with_reasons(clips, target.layout)
    n_new = _cut(clips, before, target, run_tasks)
    rows = _with_results(clips, _results(target, before))
    if isinstance(target.layout, Sharded):
        shards.make_plan(target.work, target.layout, rows, before, target.settings)
        shards.carry_out(target.folder, target.work, target.layout, run_tasks)
    else:
        _commit_files(rows, listed, target)
    return summary(target.folder, n_new)


def _check_settings(target: Target, settings: Mapping[str, Any] | None) -> None:
    changed = [name for name in settings or {} if (settings or {})[name] != target.settings.get(name)]
    if settings and changed:
        told = ", ".join(f"{name}: {settings[name]}, now {target.settings.get(name)}" for name in changed)
        raise ConfigError(
            f"{target.folder} holds an export with other settings ({told}); choose another --out, or remove it"
        )


def _with_reasons(clips: pa.Table, layout: Format) -> pa.Table:
    """The clips with the reason for which each is left out; null for those that are exported."""
    kinds, splits = clips["kind"].to_pylist(), clips["split"].to_pylist()
    reasons = [
        f"{layout.name} takes no {kind}s"
        if kind not in layout.kinds
        else "left out: in no split"
        if split is None
        else None
        for kind, split in zip(kinds, splits, strict=True)
    ]
    return set_column(clips, pa.field("left_out", pa.string()), reasons)


def _cut(clips: pa.Table, before: pa.Table, target: Target, run_tasks: RunTasks) -> int:
    """Cut the clips that are not there yet, and write anew what is said of others; returns how many were cut."""
    stored = _stored(clips["uid"], before)
    for field in STORED:
        clips = set_column(clips, field, stored[field.name])
    current = pc.fill_null(pc.equal(stored["described"], clips["described"]), False)
    if isinstance(target.layout, Sharded):
        # What is said of a clip in a shard is written with its shard; only for another split's shard it is taken out.
        current = pc.fill_null(pc.equal(stored["split"], clips["split"]), False)
    done = _parts(target)
    key = ["uid"] if isinstance(target.layout, Sharded) else ["uid", "described"]
    finished = set(_pairs(done, key))
    pending = pa.array([pair not in finished for pair in _pairs(clips, key)], pa.bool_())
    wanted = clips.filter(pc.and_(pc.and_(pc.is_null(clips["left_out"]), pc.invert(current)), pending))
    if not len(wanted):
        return 0
    # Clips of one file together, so that it is read by few.
    wanted = wanted.sort_by(
        [("source", "ascending"), ("start_pts", "ascending"), ("uid", "ascending")]
    ).combine_chunks()
    step = CutClips(layout=target.layout, cut=target.cut, folder=_clips_folder(target), stored=target.folder)
    size = tables.task_size(len(wanted), step.rows_per_part)
    tasks = [wanted.slice(start, size).combine_chunks() for start in range(0, len(wanted), size)]
    run_step(
        step,
        pa.schema([wanted.schema.field("uid"), *FATE_FIELDS, DESCRIBED, *CUT]),
        _parts_folder(target),
        tasks,
        len(wanted),
        run_tasks,
    )
    missing = set(wanted["uid"].to_pylist()) - set(_parts(target)["uid"].to_pylist())
    if missing:
        raise RuntimeError(f"{target.folder}: {len(missing)} clips have no result; run again")
    return int(pc.sum(pc.is_null(wanted["stored_file"])).as_py())


def _pairs(rows: pa.Table, names: list[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[name].to_pylist() for name in names), strict=True))


def _stored(uids: pa.ChunkedArray, before: pa.Table) -> pa.Table:
    """What the index knows of these clips; nulls for those that have no file."""
    there = before.filter(pc.is_valid(before["file"])).combine_chunks()
    found = there.take(pc.index_in(uids.combine_chunks(), value_set=there["uid"].combine_chunks()))
    values = {field.name: found[field.name.removeprefix("stored_")] for field in STORED}
    return pa.table({**values, "described": found["described"], "split": found["split"]})


def _parts_folder(target: Target) -> str:
    return storage.join(target.work, f"cut-{storage.digest(repr(target.settings), size_bytes=8)}")


def _clips_folder(target: Target) -> str:
    return storage.join(target.work, shards.CLIPS) if isinstance(target.layout, Sharded) else target.folder


def _parts(target: Target) -> pa.Table:
    """What this run and those before it that were stopped have cut, one row a clip and description."""
    schema = pa.schema([pa.field("uid", pa.string()), *FATE_FIELDS, DESCRIBED, *CUT])
    parts = storage.list_files(_parts_folder(target), tables.PART_SUFFIX)
    return pa.concat_tables(
        [schema.empty_table(), *(tables.conform(storage.read_table(part.uri), schema) for part in parts)]
    )


def _results(target: Target, before: pa.Table) -> dict[str, dict[str, Any]]:
    """The last result of each clip: from the index, and over it what was cut since."""
    there = before.filter(pc.is_valid(before["file"]))
    results = {
        row["uid"]: {field.name: row[field.name.removeprefix("cut_")] for field in CUT} for row in there.to_pylist()
    }
    for row in _parts(target).to_pylist():
        made = {field.name: row[field.name] for field in CUT}
        results[row["uid"]] = made if row["fate"] == "kept" else {"error": row["fate_reason"]}
    return results


def _with_results(clips: pa.Table, results: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The clips with `CUT` and `error`; all null for those that are left out, with the reason in `cut_reason`."""
    out = zip(clips["uid"].to_pylist(), clips["left_out"].to_pylist(), strict=True)
    found = [{"cut_reason": reason} if reason else results[uid] for uid, reason in out]
    for field in (*CUT, pa.field("error", pa.string())):
        clips = set_column(clips, field, [result.get(field.name) for result in found])
    return clips.drop_columns(["left_out"])


def _commit_files(rows: pa.Table, listed: pa.Table, target: Target) -> None:
    """Take away files that are no longer wanted, and write what is said of the whole and the index."""
    files = [target.layout.clip_file(row) if row["cut_mode"] else None for row in rows.to_pylist()]
    rows = set_column(rows, pa.field("file", pa.string()), files)
    wanted = set(files)
    for row in rows.filter(pc.is_valid(rows["file"])).to_pylist():
        wanted |= set(target.layout.beside(row))
    for row in listed.filter(pc.is_valid(listed["file"])).to_pylist():
        for name in {row["file"], *target.layout.beside(row)} - wanted:
            storage.remove(storage.join(target.folder, name))
    told = tables.conform(index.named_as_in_index(rows), index.INDEX)
    target.layout.finish(target.folder, told)
    index.write(target.folder, told, target.settings)
    storage.remove(target.work)


def summary(folder: str, n_new: int = 0) -> Summary:
    """What the index of an export says."""
    rows, _ = index.read(folder)
    modes = Counter(rows["mode"].to_pylist())
    failed = rows.filter(pc.is_valid(rows["error"]))
    failures = tuple(zip(failed["uid"].to_pylist(), failed["error"].to_pylist(), strict=True))
    n_left_out = modes[None] - len(failures)
    return Summary(
        folder,
        modes["copied"],
        modes["encoded"],
        n_new,
        n_left_out,
        int(pc.sum(rows["size_bytes"]).as_py() or 0),
        failures,
    )
