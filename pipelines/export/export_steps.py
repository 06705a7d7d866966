"""The work of an export as steps of a segment, so that it runs, resumes and fails as curation does.

They are not in `pipelines/steps`, so no recipe can name them: an export follows a complete curation.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.plugins import PluginField
from cluster.telemetry import progress
from pipelines.engine.pending import PendingRows
from pipelines.engine.segments import Segment
from pipelines.engine.source_versions import unchanged_source
from pipelines.engine.step import Context, RunError, Step, TableFunction, column, map_rows
from pipelines.engine.worker import Job
from pipelines.export.clip_files import Cut, CutSettings, cut_image, cut_video
from pipelines.export.format import CUT_COLUMNS, FOLDER, INTERNAL_COLUMNS, Clip, Format, ShardedFormat
from pipelines.video.content import crop_of

RunTasks = Callable[[Job, list[pa.Table]], Iterator[pa.Table]]
"""A function that runs tasks and yields their reports as they end, as `run_tasks` of an `Executor` does."""

DIGEST_COLUMN = column("description_digest", pa.string(), "digest of the clip's description")

STORED_COLUMNS = (
    pa.field("stored_file", pa.string()),
    pa.field("stored_member", pa.string()),
    *(pa.field(field.name.replace("cut_", "stored_", 1), field.type) for field in CUT_COLUMNS),
)
"""Columns of a clip that an earlier export cut: its file in the export's folder, and `CUT_COLUMNS`."""

REWRITE, NEW = "rewrite:", "new:"
"""Prefixes of shards to write: an existing one from its own bytes, or a new one from the clips' files."""


def run_step(
    step: Step, schema: pa.Schema, folder: str, tasks: list[pa.Table], n_rows: int, run_tasks: RunTasks
) -> None:
    """Run tasks through a single step, as a segment whose table is in `folder`.

    Raises `RunError` if rows are left pending, as their sources cannot be read.
    """
    segment = Segment(
        step.name, (step.name,), (step,), ("",), schema, storage.digest(step.model_dump_json(), size_bytes=8)
    )
    pending = PendingRows(step.name)
    with progress(step.name, n_rows) as bar:
        for report in run_tasks(Job(segment, folder, (Context(folder, 0),)), tasks):
            bar.advance(sum(report["n_inputs"].to_pylist()))
            pending.add(report)
    pending.check_none(pending.n, n_rows)


@contextlib.contextmanager
def _end_run_on(error_class: type[Exception], written: str) -> Iterator[None]:
    """Raise `RunError` for an error of a class, since it concerns what is written and not one clip."""
    try:
        yield
    except error_class as error:
        raise RunError(f"{written}: cannot be written: {type(error).__name__}: {error}") from error


class CutClips(Step):
    """A step that cuts each clip to its file in `folder`, or takes it from `stored`, where an earlier export cut it."""

    name: str = "export"
    rows_per_part = 64
    format: Annotated[Format, PluginField(FOLDER, Format)]
    cut: CutSettings
    folder: str
    stored: str

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "start_pts", "end_pts", "crop"

    def writes(self) -> tuple[pa.Field, ...]:
        return CUT_COLUMNS

    def open(self, context: Context) -> TableFunction:
        return lambda table: map_rows(table, CUT_COLUMNS, self._export)

    def _export(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a clip's file, unless `stored` has it under the same name, and its sidecars; return `CUT_COLUMNS`."""
        name = self.format.clip_file(row)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            if row["stored_file"] is None:
                values = _columns_of(_cut(row, path, self.cut))
            else:
                values = {field.name: row[field.name.replace("cut_", "stored_", 1)] for field in CUT_COLUMNS}
                if row["stored_file"] != name or row["stored_member"] is not None:
                    path.write_bytes(_stored_bytes(self.format, self.stored, row))
            sidecars = self.format.sidecars({**row, **values})
            with _end_run_on(OSError, self.folder):
                if path.exists():
                    with storage.atomic_output(storage.join(self.folder, name)) as handle, path.open("rb") as content:
                        shutil.copyfileobj(content, handle, 1 << 20)
                for sidecar, data in sidecars.items():
                    storage.write_bytes(storage.join(self.folder, sidecar), data)
        return values


def _cut(row: Clip, path: Path, settings: CutSettings) -> Cut:
    with unchanged_source(row):
        if row["kind"] == "image":
            return cut_image(row["source"], path, crop_of(row))
        return cut_video(row["source"], row["start_pts"], row["end_pts"], path, settings, crop_of(row))


def _columns_of(cut: Cut) -> dict[str, Any]:
    return {field.name: getattr(cut, field.name.removeprefix("cut_")) for field in CUT_COLUMNS}


def _stored_bytes(export_format: Format, folder: str, row: Clip) -> bytes:
    uri = storage.join(folder, row["stored_file"])
    if row["stored_member"] is None:
        return storage.read_bytes(uri)
    assert isinstance(export_format, ShardedFormat)
    return next(content for uid, content in export_format.read_shard(uri) if uid == row["uid"])


class PackShards(Step):
    """A step that writes shards, one per row, as the plan says.

    Any error ends the run: it concerns a shard and not one clip. The next run resumes with the shards that are missing.
    """

    name: str = "pack"
    rows_per_part = 1
    format: Annotated[Format, PluginField(FOLDER, Format)]
    folder: str
    clips: str
    plan: str

    def reads(self) -> tuple[str, ...]:
        return ("uid",)

    def writes(self) -> tuple[pa.Field, ...]:
        return ()

    def open(self, context: Context) -> TableFunction:
        def pack(table: pa.Table) -> pa.Table:
            for shard in table["uid"].to_pylist():
                with _end_run_on(Exception, shard):
                    self._pack(shard)
            return table

        return pack

    def _pack(self, shard: str) -> None:
        assert isinstance(self.format, ShardedFormat)
        with storage.open_input(self.plan) as handle:
            rows = pq.read_table(handle, filters=[("pending_shard", "==", shard)]).sort_by("uid")
        rows = rows.select([name for name in rows.column_names if name not in INTERNAL_COLUMNS])
        if shard.startswith(NEW):
            uri = storage.join(self.folder, shard.removeprefix(NEW))
            self.format.write_shard(uri, rows, self._cut_files(rows))
        else:
            uri = storage.join(self.folder, shard.removeprefix(REWRITE))
            self.format.write_shard(uri, rows, self._current_members(uri, rows))

    def _cut_files(self, rows: pa.Table) -> Iterator[bytes]:
        for row in rows.to_pylist():
            yield storage.read_bytes(storage.join(self.clips, self.format.clip_file(row)))

    def _current_members(self, uri: str, rows: pa.Table) -> Iterator[bytes]:
        """Yield the rows' files from the shard that is rewritten, which holds its clips in the order of their uids
        too.
        """
        assert isinstance(self.format, ShardedFormat)
        uids = set(rows["uid"].to_pylist())
        yield from (content for uid, content in self.format.read_shard(uri) if uid in uids)
