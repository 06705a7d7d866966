"""Where tasks run. `pipelines.inline` executes them in this process, `pipelines.run` on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import pyarrow as pa

from cluster.resources import Resources
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import TableFunction
from pipelines.engine.worker import Job


class Executor(Protocol):
    """Runs tasks and functions of tables. Every executor gives the same tables."""

    def run_tasks(self, job: Job, tasks: list[pa.Table], /) -> Iterator[pa.Table]:
        """Run the tasks of a job and yield the report of each (`worker.REPORT_SCHEMA`) as it ends."""
        ...

    def rows(self, tasks: list[pa.Table], columns: list[str], /) -> Rows:
        """Return these columns of the rows that the tasks name, for work over all of them."""
        ...

    def map_tables(
        self,
        load: Callable[[], TableFunction],
        inputs: Iterable[pa.Table],
        resources: Resources,
        /,
        *,
        tolerate_deaths: bool = False,
    ) -> Iterator[pa.Table]:
        """Yield the function's result for each table as it ends. Each worker calls `load` once for the function.

        A table whose worker dies is retried once. If that worker dies too, the call fails. With `tolerate_deaths` the
        table is tried again alone: only one that kills its workers itself has no result.
        """
        ...
