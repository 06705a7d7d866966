"""Executors that run in this process, for tests to subclass or to forbid work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from cluster.resources import Resources
from pipelines import inline
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import TableFunction
from pipelines.engine.worker import Job


class InlineExecutor:
    """The executor `pipelines.inline` as an object, so that a subclass changes one method of it."""

    def run_tasks(self, job: Job, tasks: list[pa.Table], /) -> Iterator[pa.Table]:
        return inline.run_tasks(job, tasks)

    def rows(self, tasks: list[pa.Table], columns: list[str], /) -> Rows:
        return inline.rows(tasks, columns)

    def map_tables(
        self,
        load: Callable[[], TableFunction],
        inputs: Iterable[pa.Table],
        resources: Resources,
        /,
        *,
        tolerate_deaths: bool = False,
    ) -> Iterator[pa.Table]:
        return inline.map_tables(load, inputs, resources, tolerate_deaths=tolerate_deaths)


class IdleExecutor(InlineExecutor):
    """An executor that fails the test if it gets any work."""

    def run_tasks(self, job: Job, tasks: list[pa.Table], /) -> Iterator[pa.Table]:
        raise AssertionError(f"{job.segment.label} has {len(tasks)} tasks, but everything was done")

    def rows(self, tasks: list[pa.Table], columns: list[str], /) -> Rows:
        raise AssertionError(f"columns {columns} of {len(tasks)} tasks are read, but everything was done")

    def map_tables(
        self, load: Callable[[], TableFunction], inputs: Iterable[pa.Table], resources: Resources, /
    ) -> Iterator[pa.Table]:
        raise AssertionError("tables are mapped, but everything was done")
