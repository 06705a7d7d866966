"""Curation of a recipe: which rows of which segment are pending, and running them. Loads no Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError, unknown_message
from cluster.large_tables import is_among, one_array, sort_by, values_of
from cluster.telemetry import log, progress
from pipelines.dataset.caption_kinds import check_sources
from pipelines.engine import pieces, tables
from pipelines.engine.compaction import compact
from pipelines.engine.exclusions import read_exclusions
from pipelines.engine.executor import Executor
from pipelines.engine.pending import PendingRows
from pipelines.engine.reuse import find_cached_rows
from pipelines.engine.segments import Segment, segments_of
from pipelines.engine.sources import FIELDS as SOURCE_FIELDS
from pipelines.engine.sources import list_sources
from pipelines.engine.step import FATE_FIELDS, Context, Divisible, Global, RunError
from pipelines.engine.table_index import Index, index_table, repair, store_index
from pipelines.engine.worker import Job
from pipelines.recipe import Recipe
from pipelines.report.causes import error_class, error_message

MAX_LISTED_REASONS = 3
"""Number of reasons that the error of too many failed inputs names."""


@dataclass(frozen=True)
class Inputs:
    """The input rows of a segment: source files, or the rows of the table before it."""

    sources: pa.Table
    upstream: Index | None = None

    @property
    def uids(self) -> pa.ChunkedArray:
        return self.sources["uid"] if self.upstream is None else self.upstream.uids

    def digest(self) -> str:
        """Return a hash of the uids of live rows, which the decisions of a `Global` step depend on."""
        live = self.uids if self.upstream is None else self.upstream.live().uids
        uids = one_array(live)
        ordered = uids.take(pc.sort_indices(uids))
        return storage.digest_of(values_of(ordered))

    def pending(self, done: pa.ChunkedArray) -> list[str]:
        """Return the uids that are not among `done`."""
        return list(self.uids.filter(pc.invert(is_among(self.uids, done))).to_pylist())

    def tasks(self, done: pa.ChunkedArray, rows_per_part: int) -> list[pa.Table]:
        """Return tasks for the rows whose uids are not among `done`."""
        if self.upstream is not None:
            return self.upstream.without_inputs(done).tasks(rows_per_part)
        rows = self.sources.filter(pc.invert(is_among(self.uids, done)))
        # Largest first: the task that takes longest must not start last.
        rows = sort_by(rows, [("size_bytes", "descending"), ("uid", "ascending")])
        size = tables.task_size(len(rows), rows_per_part)
        return [rows.slice(start, size).combine_chunks() for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class SegmentState:
    """How far a segment is: its input rows, those that were done before this run, and the index of its own table."""

    segment: Segment
    folder: str
    n_inputs: int
    n_done: int
    rows: Index
    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def n_pending(self) -> int:
        return self.n_inputs - self.n_done

    @property
    def progress(self) -> str:
        """`cut has 3 of 10 rows`, for messages."""
        return f"{self.segment.label} has {self.n_done} of {self.n_inputs} rows"


@dataclass(frozen=True)
class Curation:
    """How far curation is: the state of every segment up to the first one that is not complete."""

    sources: pa.Table
    segments: tuple[SegmentState, ...]
    complete: bool

    @property
    def final(self) -> SegmentState:
        assert self.complete, "curation is not complete"
        return self.segments[-1]

    @property
    def progress(self) -> str:
        """How far the last segment is that has begun, for messages."""
        return self.segments[-1].progress

    def check_complete(self) -> None:
        """Raise `ConfigError` with the way on if curation is not complete."""
        if not self.complete:
            raise ConfigError(f"curation is not complete: {self.progress}; run `worldloom curate` first")


def run_segments(recipe: Recipe, executor: Executor) -> Curation:
    """Bring the table of every segment up to date. Only rows that no table holds yet are worked on."""
    return _advance(recipe, executor)


def inspect(recipe: Recipe) -> Curation:
    """Return how far each segment is, without running any."""
    return _advance(recipe, None)


def read_table(recipe: Recipe, label: str | None = None) -> pa.Table:
    """Return the rows that a step has written so far, sorted by uid; by default those of the last step that has begun.

    `label` is the step's name as `worldloom plan` prints it, `cut` or `keep#2`. The table also has the columns of the
    steps before it, except thumbnails and frames that none of its steps reads. It holds dropped and failed rows with
    their fate. Raises `ConfigError` for an unknown label.
    """
    segments = inspect(recipe).segments
    if label is None:
        return segments[-1].rows.read()
    if label not in recipe.labels:
        raise ConfigError(unknown_message("step", label, recipe.labels))
    for state in segments:
        if label in state.segment.labels:
            return state.rows.read()
    raise ConfigError(f"step {label} has not run yet: {segments[-1].progress}; run `worldloom curate` first")


def _advance(recipe: Recipe, executor: Executor | None) -> Curation:
    recipe.check_curates()
    listed = list_sources(recipe.sources)
    _check_not_made_here(listed, recipe.out_uri)
    if executor is not None:
        check_sources(recipe.train, listed)
    inputs = Inputs(read_exclusions(recipe.out_uri).filter_sources(listed))
    segments = segments_of(recipe.curate, recipe.labels)
    states: list[SegmentState] = []
    chain = ""
    for segment in segments:
        segment = segment.after(chain, inputs.digest() if isinstance(segment.first, Global) else "")
        chain = segment.fingerprint
        state = segment_state(segment, recipe.tables_uri, inputs, writes=executor is not None)
        if executor is not None:
            if state.n_pending:
                state = run_segment(recipe, state, inputs, executor)
            if not states:
                check_failed_share(state, recipe.max_failed_share)
            for step, context in zip(segment.steps, contexts_of(recipe, segment), strict=True):
                step.on_complete(context)
        states.append(state)
        if state.n_pending and executor is None:
            return Curation(inputs.sources, tuple(states), complete=False)
        inputs = Inputs(inputs.sources, state.rows)
    return Curation(inputs.sources, tuple(states), complete=True)


def _check_not_made_here(sources: pa.Table, out_uri: str) -> None:
    """Raise `ConfigError` if a pattern of the recipe matches samples or exported clips of its own `out`."""
    for folder in ("samples/", "export"):
        made = sources.filter(pc.starts_with(sources["source"], f"{out_uri}/{folder}"))
        if len(made):
            raise ConfigError(
                f"sources: {made['source'][0]} is no footage: this recipe wrote it; narrow the pattern, or move `out`"
            )


def segment_state(segment: Segment, tables_uri: str, inputs: Inputs, writes: bool = False) -> SegmentState:
    """Return how many of its input rows a segment's table holds.

    With `writes`, rows that two writers did are removed from all parts but the first, and the index is stored.
    """
    folder, input_column = segment.folder(tables_uri), segment.input_column
    index = index_table(folder, input_column)
    if writes and index.n_doubled:
        log.warning(
            f"{segment.label}: {repair(folder, input_column)} rows were done by two writers; one of each is kept"
        )
        index = index_table(folder, input_column)
    if writes and not index.is_stored:
        store_index(folder, input_column)
    rows = index.of_inputs(inputs.uids)
    return SegmentState(segment, folder, len(inputs.uids), pc.count_distinct(rows.rows["input_uid"]).as_py(), rows)


def run_segment(recipe: Recipe, state: SegmentState, inputs: Inputs, executor: Executor) -> SegmentState:
    """Run the pending rows of a segment and return its new state. Raises `RunError` if rows are still pending."""
    start_s, cpu_s = time.monotonic(), 0.0
    pending = PendingRows(state.segment.label)
    tables.remove_end_markers(state.folder)
    job = prepare(recipe, state, inputs, executor)
    tasks = inputs.tasks(state.rows.rows["input_uid"], state.segment.first.rows_per_part)
    with progress(" > ".join(state.segment.labels), state.n_pending) as bar:
        for round_ in _rounds(state.segment, state.folder, inputs, tasks):
            for report in executor.run_tasks(job, round_) if round_ else ():
                cpu_s += sum(report["cpu_s"].to_pylist())
                bar.advance(sum(report["n_inputs"].to_pylist()))
                pending.add(report)
    after = segment_state(state.segment, recipe.tables_uri, inputs)
    pending.check_none(after.n_pending, after.n_inputs)
    compact(state.folder, state.segment.input_column)
    after = segment_state(state.segment, recipe.tables_uri, inputs, writes=True)
    return replace(after, n_done=state.n_done, seconds=time.monotonic() - start_s, cpu_s=cpu_s)


def _rounds(segment: Segment, folder: str, inputs: Inputs, tasks: list[pa.Table]) -> Iterator[list[pa.Table]]:
    """Yield the tasks of a segment, then those of the pieces that workers planned, then those that join them."""
    yield tasks
    if isinstance(segment.first, Divisible) and pieces.planned(folder):

        def pending() -> pa.Table:
            return inputs.sources.filter(pc.invert(pc.is_in(inputs.uids, index_table(folder).uids)))

        parts = pieces.piece_tasks(folder, pending())
        log.info(f"{segment.label}: long rows are done in {len(parts)} pieces")
        yield parts
        yield pieces.join_tasks(folder, pending())
        if not len(pending()):
            pieces.clear(folder)


def check_failed_share(state: SegmentState, max_share: float) -> None:
    """Raise `RunError` with the most frequent reasons if more than a share of a segment's inputs failed."""
    failed = Index(state.rows.rows.filter(pc.equal(state.rows.rows["fate"], "failed")))
    if len(failed) <= max_share * state.n_inputs:
        return
    reasons = failed.read(["uid", "fate_reason"])["fate_reason"].to_pylist()
    examples = {error_class(reason): error_message(reason) for reason in reversed(reasons)}
    counts = Counter(map(error_class, reasons)).most_common(MAX_LISTED_REASONS)
    listed = "; ".join(f"{count} {name}, as {examples[name]}" for name, count in counts)
    raise RunError(
        f"{state.segment.label}: {len(failed)} of {state.n_inputs} inputs failed ({len(failed) / state.n_inputs:.0%}), "
        f"more than max_failed_share {max_share:g}: {listed}. Mend them, leave them out of sources, or raise "
        "max_failed_share"
    )


def prepare(recipe: Recipe, state: SegmentState, inputs: Inputs, executor: Executor) -> Job:
    """Return all that the workers of a segment need, gathered once on the driver."""
    segment, pending = state.segment, inputs.pending(state.rows.rows["input_uid"])
    contexts = [
        replace(context, state=step.prepare(context, pending))
        for step, context in zip(segment.steps, contexts_of(recipe, segment), strict=True)
    ]
    solved = None
    if isinstance(segment.first, Global):
        assert inputs.upstream is not None, "a Global step cannot be the first"
        solved = solve(segment.first, inputs.upstream.live(), executor)
    cached = find_cached_rows(recipe.tables_uri, segment)
    for label, rows in cached.items():
        log.info(f"{label}: {len(rows.index)} rows were worked on before; their results are reused")
    return Job(segment, state.folder, tuple(contexts), cached, solved, read_exclusions(recipe.out_uri))


def contexts_of(recipe: Recipe, segment: Segment) -> list[Context]:
    """Return the context of each step of a segment."""
    return [Context(recipe.tables_uri, recipe.seed, lineage) for lineage in segment.lineages]


def solve(step: Global, live: Index, executor: Executor) -> pa.Table:
    """Return what a `Global` step decides about live rows: `uid`, the written columns and the fate columns."""
    schema = pa.schema([field for field in SOURCE_FIELDS if field.name == "uid"] + [*step.writes(), *FATE_FIELDS])
    tasks = live.tasks(step.rows_per_part)
    solved = step.solve(executor.rows(tasks, ["uid", *step.reads()])) if tasks else schema.empty_table()
    return tables.conform(solved, schema)
