"""Drive a recipe's curation: which rows of which segment still want work, and the dataset that comes out. Knows no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import log, progress
from pipelines.engine import pieces, tables
from pipelines.engine.exclusions import forgotten
from pipelines.engine.reuse import find_donors
from pipelines.engine.segments import Segment, segments_of
from pipelines.engine.shuffle import Rows
from pipelines.engine.sources import FIELDS as SOURCE_FIELDS
from pipelines.engine.sources import list_sources
from pipelines.engine.step import FATE_FIELDS, Context, Divisible, Expand, Global, Resources, TableFunction
from pipelines.engine.tables import Index
from pipelines.engine.worker import Job
from pipelines.recipe import Recipe


class Engine(Protocol):
    """Where work is done: the modules `pipelines.inline`, in this process, and `pipelines.run`, on Ray."""

    def run_orders(self, job: Job, orders: list[pa.Table], /) -> Iterator[pa.Table]:
        """Runs orders and yields their reports as they end."""
        ...

    def rows(self, orders: list[pa.Table], columns: list[str], /) -> Rows:
        """Some columns of the rows that orders are for, for work over all of them."""
        ...

    def map_tables(
        self, load: Callable[[], TableFunction], wanted: list[pa.Table], resources: Resources, /
    ) -> Iterator[pa.Table]:
        """What the function makes of each table, as it ends. `load` gets what it needs ready, once a worker with these resources."""
        ...


@dataclass(frozen=True)
class Inputs:
    """The rows a segment starts from: source files, or rows of the table before."""

    sources: pa.Table
    upstream: Index | None = None

    @property
    def uids(self) -> pa.ChunkedArray:
        return self.sources["uid"] if self.upstream is None else self.upstream.uids

    def digest(self) -> str:
        """Hash of which rows are live: what a Global step's decisions depend on."""
        live = self.uids if self.upstream is None else self.upstream.live().uids
        return storage.digest(*sorted(live.to_pylist()))

    def pending(self, done: pa.ChunkedArray) -> list[str]:
        """Uids of the rows that are not done."""
        finished = set(done.to_pylist())
        return [uid for uid in self.uids.to_pylist() if uid not in finished]

    def orders(self, done: pa.ChunkedArray, rows_per_part: int) -> list[pa.Table]:
        """Orders for the rows that are not done."""
        if self.upstream is not None:
            return self.upstream.without_inputs(done).orders(rows_per_part)
        rows = self.sources.filter(pc.is_in(self.uids, pa.array(self.pending(done), pa.string())))
        # Largest first: what takes longest must not start last.
        rows = rows.sort_by([("size_bytes", "descending"), ("uid", "ascending")])
        size = tables.order_size(len(rows), rows_per_part)
        return [rows.slice(start, size).combine_chunks() for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class SegmentState:
    """Where a segment stands: how many rows it has to take, how many were there before this run, and its own rows."""

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


@dataclass(frozen=True)
class Curation:
    """How far curation is: every segment up to the first one that is not complete."""

    sources: pa.Table
    segments: tuple[SegmentState, ...]
    complete: bool

    @property
    def final(self) -> SegmentState:
        assert self.complete, "curation is not complete"
        return self.segments[-1]


def curate(recipe: Recipe, engine: Engine) -> Curation:
    """Bring every segment's table up to date. Only rows that are not there yet are worked on."""
    return _advance(recipe, engine)


def inspect(recipe: Recipe) -> Curation:
    """How far each segment is, without working on any."""
    return _advance(recipe, None)


def _advance(recipe: Recipe, engine: Engine | None) -> Curation:
    listed = list_sources(recipe.sources)
    _check_not_made_here(listed, recipe.out_uri)
    inputs = Inputs(forgotten(recipe.out_uri).leave_out(listed))
    segments = segments_of(recipe.curate, recipe.labels)
    states: list[SegmentState] = []
    chain = ""
    for segment in segments:
        segment = segment.after(chain, inputs.digest() if isinstance(segment.first, Global) else "")
        chain = segment.fingerprint
        state = stand(segment, recipe.tables_uri, inputs)
        if state.n_pending and engine is not None:
            state = run_segment(recipe, state, inputs, engine)
        if engine is not None:
            for step, context in zip(segment.steps, contexts_of(recipe, segment), strict=True):
                step.settle(context)
        states.append(state)
        if state.n_pending and engine is None:
            return Curation(inputs.sources, tuple(states), complete=False)
        inputs = Inputs(inputs.sources, state.rows)
    return Curation(inputs.sources, tuple(states), complete=True)


def _check_not_made_here(sources: pa.Table, out_uri: str) -> None:
    """Raises `ConfigError` where samples or exported clips would be taken for footage."""
    for folder in ("samples/", "export"):
        made = sources.filter(pc.starts_with(sources["source"], f"{out_uri}/{folder}"))
        if len(made):
            raise ConfigError(
                f"sources: {made['source'][0]} is no footage, but was written by this recipe; narrow the pattern, or move `out`"
            )


def stand(segment: Segment, tables_uri: str, inputs: Inputs) -> SegmentState:
    """How many of its input rows a segment's table has."""
    folder = segment.folder(tables_uri)
    input_column = "source_uid" if isinstance(segment.first, Expand) else "uid"
    rows = tables.index_table(folder, input_column).of_inputs(inputs.uids)
    return SegmentState(segment, folder, len(inputs.uids), len(set(rows.rows["input_uid"].to_pylist())), rows)


def run_segment(recipe: Recipe, state: SegmentState, inputs: Inputs, engine: Engine) -> SegmentState:
    """Do what a segment still wants, and look again at what its table holds."""
    start_s, cpu_s = time.monotonic(), 0.0
    job = prepare(recipe, state, inputs, engine)
    orders = inputs.orders(state.rows.rows["input_uid"], state.segment.first.rows_per_part)
    with progress(" > ".join(state.segment.labels), state.n_pending) as bar:
        for wanted in _rounds(state.segment, state.folder, inputs, orders):
            for report in engine.run_orders(job, wanted) if wanted else ():
                cpu_s += sum(report["cpu_s"].to_pylist())
                bar.advance(sum(report["n_inputs"].to_pylist()))
    after = stand(state.segment, recipe.tables_uri, inputs)
    if after.n_pending:
        raise RuntimeError(
            f"{state.segment.label}: {after.n_pending} of {after.n_inputs} rows have no result in {after.folder}; run again"
        )
    return replace(after, n_done=state.n_done, seconds=time.monotonic() - start_s, cpu_s=cpu_s)


def _rounds(segment: Segment, folder: str, inputs: Inputs, orders: list[pa.Table]) -> Iterator[list[pa.Table]]:
    """The orders of a segment; then, where its workers met rows that want to be done in pieces, these and what joins them."""
    yield orders
    if isinstance(segment.first, Divisible) and pieces.planned(folder):

        def left() -> pa.Table:
            return inputs.sources.filter(pc.invert(pc.is_in(inputs.uids, tables.index_table(folder).uids)))

        parts = pieces.piece_orders(folder, left())
        log.info(f"{segment.label}: long rows are done in {len(parts)} pieces")
        yield parts
        yield pieces.join_orders(folder, left())
        pieces.clear(folder)


def prepare(recipe: Recipe, state: SegmentState, inputs: Inputs, engine: Engine) -> Job:
    """All that a segment's workers need, gathered once."""
    segment, pending = state.segment, inputs.pending(state.rows.rows["input_uid"])
    contexts = [
        replace(context, state=step.prepare(context, pending))
        for step, context in zip(segment.steps, contexts_of(recipe, segment), strict=True)
    ]
    solved = None
    if isinstance(segment.first, Global):
        assert inputs.upstream is not None, "a Global step cannot be the first"
        solved = solve(segment.first, inputs.upstream.live(), engine)
    donors = find_donors(recipe.tables_uri, segment)
    for label, donor in donors.items():
        log.info(f"{label}: {len(donor.index)} rows were worked on before; their results are reused")
    return Job(segment, state.folder, tuple(contexts), donors, solved, forgotten(recipe.out_uri))


def contexts_of(recipe: Recipe, segment: Segment) -> list[Context]:
    return [Context(recipe.tables_uri, recipe.seed, lineage) for lineage in segment.lineages]


def solve(step: Global, live: Index, engine: Engine) -> pa.Table:
    """What a Global step decides about live rows."""
    schema = pa.schema([field for field in SOURCE_FIELDS if field.name == "uid"] + [*step.writes(), *FATE_FIELDS])
    orders = live.orders(step.rows_per_part)
    solved = step.solve(engine.rows(orders, ["uid", *step.reads()])) if orders else schema.empty_table()
    return tables.conform(solved, schema)
