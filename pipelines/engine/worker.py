"""The work on one task: read its rows, run a segment's steps on them, write one part. It runs with or without Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster import metrics, storage
from cluster.resources import Resources
from pipelines.engine import pieces, tables
from pipelines.engine.exclusions import NO_EXCLUSIONS, Exclusions
from pipelines.engine.pending import retry_rows, without_pending
from pipelines.engine.reuse import CachedRows
from pipelines.engine.segments import Segment, footer
from pipelines.engine.step import (
    FATE_COLUMNS,
    Context,
    Divisible,
    Expand,
    Global,
    Mark,
    RunError,
    Step,
    TableFunction,
    failure,
    is_live,
    set_column,
    set_marks,
    start_fates,
)
from pipelines.engine.table_index import index_table

REPORT_SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("n_inputs", pa.int64()),
        ("n_rows", pa.int64()),
        ("cpu_s", pa.float64()),
        ("n_pending", pa.int64()),
        ("pending_reason", pa.string()),
    ]
)
"""Report of a finished task: the URI of its part (empty if it wrote none), its cost, and the inputs it left pending."""


@dataclass(frozen=True)
class Job:
    """A segment and all that its workers need. It is picklable and the same for every worker."""

    segment: Segment
    folder: str
    contexts: tuple[Context, ...]
    cached: Mapping[str, CachedRows] = field(default_factory=dict)
    solved: pa.Table | None = None
    """The decisions of a `Global` step."""
    exclusions: Exclusions = NO_EXCLUSIONS
    end_marker: str = ""
    """URI of a file that ends this job's stream of tasks when it exists; empty for one that cannot be ended."""

    def stages(self) -> list[Stage]:
        """Group neighbouring steps with equal resources: they share a worker."""
        groups: list[list[int]] = []
        for position, step in enumerate(self.segment.steps):
            if groups and step.resources() == self.segment.steps[groups[-1][-1]].resources():
                groups[-1].append(position)
            else:
                groups.append([position])
        return [Stage(self, tuple(group), group is groups[0], group is groups[-1]) for group in groups]


@dataclass(frozen=True)
class Stage:
    """Steps of a job that one worker runs. The first stage reads the task, the last writes the part."""

    job: Job
    positions: tuple[int, ...]
    reads: bool
    writes: bool

    @property
    def resources(self) -> Resources:
        return self.job.segment.steps[self.positions[0]].resources()


COSTS_KEY = b"worldloom_costs"


@dataclass
class Costs:
    """The cost of a task so far."""

    n_inputs: int = 0
    cpu_s: float = 0.0
    steps: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """Rows worked on, CPU seconds and wall-clock seconds by step label."""

    @classmethod
    def of_earlier_stages(cls, table: pa.Table) -> Costs:
        """Read the costs that an earlier stage wrote into the metadata of its table."""
        stored = (table.schema.metadata or {}).get(COSTS_KEY)
        return cls(**json.loads(stored)) if stored else cls()

    def attach_to(self, table: pa.Table) -> pa.Table:
        """Return the table with these costs in its metadata, for the next stage."""
        return table.replace_schema_metadata({COSTS_KEY: json.dumps(asdict(self)).encode()})


class Worker:
    """A stage with its weights loaded. It is called with a task, or with the rows of the stage before."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._functions: dict[int, TableFunction] = {}

    def __call__(self, table: pa.Table) -> pa.Table:
        start_s = time.process_time()
        stage, job = self._stage, self._stage.job
        joined = None
        if table.schema == REPORT_SCHEMA:
            # An earlier stage finished the task.
            return table
        costs = Costs.of_earlier_stages(table)
        if stage.reads:
            table = tables.read_task(table)
            first = job.segment.first
            if isinstance(first, Divisible):
                if pieces.is_piece(table):
                    reason = pieces.run_piece(first, job.folder, table)
                    return report("", 0, 0, time.process_time() - start_s, (int(bool(reason)), reason))
                table, joined = self._select_rows(first, table)
            costs.n_inputs = len(table)
            table = table if "fate" in table.column_names else start_fates(table)
            if not len(table):
                return report("", 0, 0, time.process_time() - start_s)
        for position in stage.positions:
            step_cpu_s, step_s = time.process_time(), time.monotonic()
            table, n_rows = self._run_step(position, table, joined if position == 0 else None)
            costs.steps[job.segment.labels[position]] = (
                n_rows,
                time.process_time() - step_cpu_s,
                time.monotonic() - step_s,
            )
        costs.cpu_s += time.process_time() - start_s
        if not stage.writes:
            return costs.attach_to(table)
        table, *pending = without_pending(tables.conform(table, job.segment.schema), job.segment.input_column)
        if not len(table):
            return report("", costs.n_inputs, 0, costs.cpu_s, pending)
        table = job.exclusions.redact_shots(table)
        if job.end_marker and storage.exists(job.end_marker):
            raise RunError(f"{job.segment.label}: this stream of tasks has ended, and another does its rows")
        part = tables.write_part(job.folder, table, {**footer(job.segment), **asdict(costs)})
        record_metrics(job.segment, table, costs)
        return report(part, costs.n_inputs, len(table), costs.cpu_s, pending)

    def close(self) -> None:
        """Close the functions of steps that have a `close`."""
        for function in self._functions.values():
            getattr(function, "close", lambda: None)()

    def _select_rows(self, step: Divisible, table: pa.Table) -> tuple[pa.Table, TableFunction | None]:
        """Return the rows to work on: undivided ones, or those to be joined, with the function that joins them."""
        job = self._stage.job
        if pieces.is_join(table):
            table, plans = pieces.split_plans(table)
            return table, pieces.join_function(step, job.folder, plans)
        donor = job.cached.get(job.segment.labels[0])
        stored = pc.is_in(table["uid"], donor.index["uid"]) if donor else pa.array([False] * len(table))
        return pa.concat_tables(
            [table.filter(stored), pieces.plan_long_rows(step, job.folder, table.filter(pc.invert(stored)))]
        ), None

    def _run_step(self, position: int, table: pa.Table, instead: TableFunction | None) -> tuple[pa.Table, int]:
        """Run a step, or `instead` in its place, on a table. Also return how many rows were worked on."""
        segment = self._stage.job.segment
        step, label = segment.steps[position], segment.labels[position]
        if isinstance(step, Expand):
            return expand(step, label, table, self._stage.job.exclusions), len(table)
        if isinstance(step, Global):
            assert self._stage.job.solved is not None
            return join_solved(step, label, table, self._stage.job.solved), len(table)
        if instead is None and position not in self._functions:
            self._functions[position] = step.open(self._stage.job.contexts[position])
        return run_step(step, label, table, instead or self._functions[position], self._stage.job.cached.get(label))


def run_step(
    step: Step, label: str, table: pa.Table, function: TableFunction, donor: CachedRows | None = None
) -> tuple[pa.Table, int]:
    """Run a step on the live rows of a table; marked rows get nulls. The order of rows is unchanged.

    Also return the number of rows that were worked on: live ones without cached values.
    """
    fields = list(step.writes())
    for written in fields:
        table = set_column(table, written, pa.nulls(len(table), written.type))
    live = pc.fill_null(is_live(table), False).combine_chunks()
    numbers = pa.array(range(len(table)), pa.int64())
    parts, positions = [table.filter(pc.invert(live))], [numbers.filter(pc.invert(live))]
    work, work_positions = table.filter(live), numbers.filter(live)
    if donor is not None and len(work):
        stored, values = donor.fetch(work["uid"], fields)
        hits = work.filter(stored)
        for written in fields:
            hits = set_column(hits, written, values[written.name].cast(written.type))
        parts.append(hits)
        positions.append(work_positions.filter(stored))
        work, work_positions = work.filter(pc.invert(stored)), work_positions.filter(pc.invert(stored))
    if len(work):
        done = retry_rows(partial(guarded, function, fields=fields), work)
        assert done["uid"].equals(work["uid"]), f"{label} changed the rows or their order"
        marked = pc.invert(is_live(done))
        done = set_column(
            done, table.schema.field("fate_step"), pc.if_else(marked, pa.scalar(label), pa.scalar(None, pa.string()))
        )
        parts.append(done.select(table.column_names))
        positions.append(work_positions)
    return pa.concat_tables(parts).take(pc.sort_indices(pa.concat_arrays(positions))).combine_chunks(), len(work)


def guarded(function: TableFunction, table: pa.Table, fields: Sequence[pa.Field]) -> pa.Table:
    """Return the function's result. If it raises, run each row alone, so that only the rows at fault are marked."""
    try:
        return function(table)
    except RunError:
        raise
    except Exception as error:  # recorded in the rows at fault
        if len(table) == 1:
            for written in fields:
                table = set_column(table, written, pa.nulls(1, written.type))
            return set_marks(table, [failure(error)])
    return pa.concat_tables(guarded(function, table.slice(i, 1), fields).combine_chunks() for i in range(len(table)))


def expand(step: Expand, label: str, table: pa.Table, exclusions: Exclusions = NO_EXCLUSIONS) -> pa.Table:
    """Turn each live source row into its clips. A source without clips, or marked before, stays as one marked row."""
    inherited = [name for name in table.column_names if name not in step.consumes()]
    fields = {name: table.schema.field(name) for name in inherited} | {
        written.name: written for written in step.writes()
    }
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    for row in table.to_pylist():
        for clip in _clips_of(step, label, row, exclusions):
            for name in fields:
                columns[name].append(clip.get(name))
    return pa.table(
        {name: pa.array(values, fields[name].type) for name, values in columns.items()},
        pa.schema(list(fields.values())),
    )


def _clips_of(step: Expand, label: str, row: dict[str, Any], exclusions: Exclusions) -> list[dict[str, Any]]:
    source = {**row, "source_uid": row["uid"]}
    if row["fate"] != "kept":
        return [source]
    try:
        clips = step.expand(row)
        clips = clips if isinstance(clips, Mark) else exclusions.filter_clips(row, clips)
    except Exception as error:  # recorded in the row
        clips = failure(error)
    if isinstance(clips, Mark):
        values = (clips.fate, label, clips.reason, clips.value, clips.bound)
        return [{**source, **dict(zip(FATE_COLUMNS, values, strict=True))}]
    assert clips, f"{label} gave neither clips nor a mark for {row['uid']}"
    return [{**source, **clip} for clip in clips]


def join_solved(step: Global, label: str, table: pa.Table, solved: pa.Table) -> pa.Table:
    """Write the decisions of a `Global` step into live rows; marked rows stay as they were."""
    live, defaults = is_live(table), step.defaults(table)
    position = pc.index_in(table["uid"].combine_chunks(), solved["uid"].combine_chunks())
    found, decided = solved.take(position), pc.is_valid(position)
    for written in step.writes():
        before = table[written.name] if written.name in table.column_names else pa.nulls(len(table), written.type)
        now = pc.if_else(decided, found[written.name], defaults[written.name])
        table = set_column(table, written, pc.if_else(live, now, before))
    marked = pc.fill_null(pc.and_(live, pc.not_equal(found["fate"], "kept")), False)
    for name in FATE_COLUMNS:
        values = pa.scalar(label) if name == "fate_step" else found[name]
        table = set_column(table, table.schema.field(name), pc.if_else(marked, values, table[name]))
    return table


def without_done(job: Job, tasks: list[pa.Table]) -> list[pa.Table]:
    """Return the tasks that have no result yet, and pieces of long rows, which may be done again.

    A task is done if any of its rows is: its part becomes visible at once.
    """
    done = set(index_table(job.folder, job.segment.input_column).rows["input_uid"].to_pylist())
    return [task for task in tasks if pieces.is_piece(task) or done.isdisjoint(tables.uids_of(task))]


def failed_rows(job: Job, task: pa.Table, reason: str) -> pa.Table:
    """Write the part of rows whose worker died each time: live ones are failed with the reason. Return the report."""
    rows = tables.read_task(task)
    rows = rows if "fate" in rows.column_names else start_fates(rows)
    dead = is_live(rows)
    for name, value in (("fate_step", job.segment.label), ("fate_reason", reason), ("fate", "failed")):
        rows = set_column(rows, rows.schema.field(name), pc.if_else(dead, pa.scalar(value), rows[name]))
    if "source_uid" in job.segment.schema.names and "source_uid" not in rows.column_names:
        rows = rows.append_column("source_uid", rows["uid"])
    rows = tables.conform(rows, job.segment.schema)
    part = tables.write_part(job.folder, rows, footer(job.segment))
    record_metrics(job.segment, rows, Costs())
    return report(part, len(rows), len(rows), 0.0)


def record_metrics(segment: Segment, table: pa.Table, costs: Costs) -> None:
    """Record the rows of a part by the step of this segment that gave them their fate, their hours, and the costs.

    Rows that were marked before this segment are not counted again.
    """
    seconds = next((name for name in ("duration_s", "source_duration_s") if name in table.column_names), None)
    rows = table.select(["fate", "fate_step", *([seconds] if seconds else [])])
    totals = [([], "count_all"), *([(seconds, "sum")] if seconds else [])]
    for group in rows.group_by(["fate", "fate_step"]).aggregate(totals).to_pylist():
        step = segment.labels[-1] if group["fate"] == "kept" else group["fate_step"]
        if step in segment.labels:
            metrics.ROWS.record(group["count_all"], step=step, fate=group["fate"])
            metrics.HOURS.record((group.get(f"{seconds}_sum") or 0.0) / 3600, step=step, fate=group["fate"])
    for step, (_, cpu_s, wall_s) in costs.steps.items():
        metrics.STEP_CPU_SECONDS.record(cpu_s, step=step)
        metrics.STEP_SECONDS.record(wall_s, step=step)


def report(part: str, n_inputs: int, n_rows: int, cpu_s: float, pending: Sequence[Any] = (0, "")) -> pa.Table:
    """Return the report of a task as a table of one row; `pending` is the number of pending inputs and a reason."""
    values = (part, n_inputs, n_rows, cpu_s, *pending)
    return pa.table([[value] for value in values], schema=REPORT_SCHEMA)
