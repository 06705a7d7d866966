"""All work one piece after another in this process: for tests and for debugging, with the tables Ray would write."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from pipelines.engine import tables
from pipelines.engine.shuffle import LocalRows
from pipelines.engine.step import Resources, TableFunction
from pipelines.engine.worker import Job, Worker
from pipelines.steps._bulk_captions import refuse_in_process


def run_orders(job: Job, orders: list[pa.Table]) -> Iterator[pa.Table]:
    """A report for each order, as it ends."""
    refuse_in_process(job)
    workers = [Worker(stage) for stage in job.stages()]
    try:
        for order in orders:
            table = order
            for worker in workers:
                table = worker(table)
            yield table
    finally:
        for worker in workers:
            worker.close()


def rows(orders: list[pa.Table], columns: list[str]) -> LocalRows:
    """Some columns of the rows that orders are for."""
    return LocalRows([tables.read_order(order, columns) for order in orders])


def map_tables(load: Callable[[], TableFunction], wanted: list[pa.Table], resources: Resources) -> Iterator[pa.Table]:
    """What the function makes of each table, in order."""
    function = load()
    for table in wanted:
        yield function(table)
