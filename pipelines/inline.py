"""The executor of this process: one task after another, for tests and debugging. It writes the same tables as Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pyarrow as pa

from cluster.resources import Resources
from pipelines.engine import tables
from pipelines.engine.shuffle import LocalRows
from pipelines.engine.step import TableFunction
from pipelines.engine.worker import Job, Worker
from pipelines.steps._bulk_captions import refuse_in_process


def run_tasks(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """Run tasks one after another and yield the report of each."""
    refuse_in_process(job)
    workers = [Worker(stage) for stage in job.stages()]
    try:
        for task in tasks:
            table = task
            for worker in workers:
                table = worker(table)
            yield table
    finally:
        for worker in workers:
            worker.close()


def rows(tasks: list[pa.Table], columns: list[str]) -> LocalRows:
    """Return these columns of the rows of tasks, which are read from their parts each time."""
    return LocalRows(tasks).map(partial(tables.read_task, columns=columns))


def map_tables(
    load: Callable[[], TableFunction],
    wanted: Iterable[pa.Table],
    resources: Resources,
    *,
    tolerate_deaths: bool = False,
) -> Iterator[pa.Table]:
    """Yield the function's result for each table, in order."""
    function = load()
    for table in wanted:
        yield function(table)
