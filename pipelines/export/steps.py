"""The work of an export as steps of a segment, so that it runs, resumes and fails as curation does.

They are not in `pipelines/steps` and no recipe can name them: an export is made of what a recipe kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.plugins import PluginField
from cluster.telemetry import progress
from pipelines.engine.segments import Segment
from pipelines.engine.step import Context, RunError, Step, TableFunction, column, map_rows
from pipelines.engine.worker import Job
from pipelines.export.clip_files import Cut, CutSettings, cut_image, cut_video
from pipelines.export.format import CUT, FOLDER, UNSAID, Clip, Format, Sharded

RunTasks = Callable[[Job, list[pa.Table]], Iterator[pa.Table]]
"""Runs orders somewhere and yields their reports as they end: `run_tasks` of `pipelines.inline` and of `pipelines.run`."""

DESCRIBED = column("described", pa.string(), "digest of what is said of the clip")

STORED = (
    pa.field("stored_file", pa.string()),
    pa.field("stored_member", pa.string()),
    *(pa.field(field.name.replace("cut_", "stored_", 1), field.type) for field in CUT),
)
"""Columns of a clip that was cut before: where its file is in the export's folder, and what is known of it."""


def run_step(
    step: Step, schema: pa.Schema, folder: str, tasks: list[pa.Table], n_rows: int, run_tasks: RunTasks
) -> None:
    """Run orders through a single step, as a segment of its own whose table is in `folder`."""
    segment = Segment(
        step.name, (step.name,), (step,), ("",), schema, storage.digest(step.model_dump_json(), size_bytes=8)
    )
    with progress(step.name, n_rows) as bar:
        for report in run_tasks(Job(segment, folder, (Context(folder, 0),)), tasks):
            bar.advance(sum(report["n_inputs"].to_pylist()))


class CutClips(Step):
    """Cuts each clip to its file in `folder`. One that was cut before is taken from where it lies in `stored`."""

    name: str = "export"
    rows_per_part = 64
    layout: Annotated[Format, PluginField(FOLDER, Format)]
    cut: CutSettings
    folder: str
    stored: str

    def reads(self) -> tuple[str, ...]:
        return "source", "kind", "start_pts", "end_pts"

    def writes(self) -> tuple[pa.Field, ...]:
        return CUT

    def open(self, context: Context) -> TableFunction:
        return lambda table: map_rows(table, CUT, self._export)

    def _export(self, row: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(self.layout.clip_file(row)).name)
            if row["stored_file"] is None:
                made = _columns(_cut(row, path, self.cut))
            else:
                made = {field.name: row[field.name.replace("cut_", "stored_", 1)] for field in CUT}
                if row["stored_file"] != self.layout.clip_file(row) or row["stored_member"] is not None:
                    path.write_bytes(_stored_bytes(self.layout, self.stored, row))
            files = {self.layout.clip_file(row): path} if path.exists() else {}
            beside = self.layout.beside({**row, **made})
            try:
                for name, source in files.items():
                    with storage.atomic_output(storage.join(self.folder, name)) as handle, source.open("rb") as content:
                        while block := content.read(1 << 20):
                            handle.write(block)
                for name, data in beside.items():
                    storage.write_bytes(storage.join(self.folder, name), data)
            except OSError as error:
                raise RunError(f"{self.folder}: cannot be written: {type(error).__name__}: {error}") from error
        return made


def _cut(row: Clip, path: Path, settings: CutSettings) -> Cut:
    if row["kind"] == "image":
        return cut_image(row["source"], path)
    return cut_video(row["source"], row["start_pts"], row["end_pts"], path, settings)


def _columns(cut: Cut) -> dict[str, Any]:
    return {field.name: getattr(cut, field.name.removeprefix("cut_")) for field in CUT}


def _stored_bytes(layout: Format, folder: str, row: Clip) -> bytes:
    uri = storage.join(folder, row["stored_file"])
    if row["stored_member"] is None:
        return storage.read_bytes(uri)
    assert isinstance(layout, Sharded)
    return next(content for uid, content in layout.read_shard(uri) if uid == row["uid"])


class PackShards(Step):
    """Writes shards, one a row, as the plan says. A fault ends the run: it is no clip's, and a rerun goes on from what is written."""

    name: str = "pack"
    rows_per_part = 1
    layout: Annotated[Format, PluginField(FOLDER, Format)]
    folder: str
    clips: str
    plan: str

    def reads(self) -> tuple[str, ...]:
        return ("uid",)

    def writes(self) -> tuple[pa.Field, ...]:
        return ()

    def open(self, context: Context) -> TableFunction:
        def pack(table: pa.Table) -> pa.Table:
            for row in table.to_pylist():
                try:
                    self._pack(row["uid"])
                except Exception as error:
                    raise RunError(f"{row['uid']}: cannot be written: {type(error).__name__}: {error}") from error
            return table

        return pack

    def _pack(self, shard: str) -> None:
        assert isinstance(self.layout, Sharded)
        with storage.open_input(self.plan) as handle:
            rows = pq.read_table(handle, filters=[("shard", "==", shard)]).sort_by("uid")
        rows = rows.select([name for name in rows.column_names if name not in UNSAID])
        how, _, name = shard.partition(":")
        uri = storage.join(self.folder, name)
        self.layout.write_shard(uri, rows, self._staged(rows) if how == "new" else self._kept(uri, rows))

    def _staged(self, rows: pa.Table) -> Iterator[bytes]:
        for row in rows.to_pylist():
            yield storage.read_bytes(storage.join(self.clips, self.layout.clip_file(row)))

    def _kept(self, uri: str, rows: pa.Table) -> Iterator[bytes]:
        """Bytes of clips from the shard that is written anew, which holds its clips in the order of their uids as well."""
        assert isinstance(self.layout, Sharded)
        wanted = set(rows["uid"].to_pylist())
        yield from (content for uid, content in self.layout.read_shard(uri) if uid in wanted)
