"""The one place of this package that knows Ray: orders of a segment on Ray Data, and a whole recipe on a cluster."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from cluster.telemetry import log
from pipelines.tables import split_order
from pipelines.work import Job, Stage, Worker, failed_rows

WORKER_DEATHS = (WorkerCrashedError, ActorDiedError, ActorUnavailableError, OutOfMemoryError)


def run_orders(job: Job, orders: list[pa.Table]) -> Iterator[pa.Table]:
    """Reports of orders as they end, on whatever Ray is connected.

    A worker that dies (a decoder that crashes on one file, say) takes no other row with it: what has no part yet is done
    again a row an order, and the rows whose worker dies again are written as failed. An error in our own code or in the
    storage ends the run instead; it is no row's fault.
    """
    left = list(range(len(orders)))
    try:
        for number, report in _stream(job, orders, left):
            left.remove(number)
            yield report
        return
    except RayError as error:
        if not _is_worker_death(error):
            raise
    singles = [single for number in left for single in split_order(orders[number])]
    log.warning(f"{job.segment.label}: a worker died; its {len(singles)} rows are done again one by one")
    waiting = list(range(len(singles)))
    for number, report in _stream(job, singles, waiting, tolerate_deaths=True):
        waiting.remove(number)
        yield report
    for number in waiting:
        yield failed_rows(job, singles[number], "WorkerDied: the process that worked on this row died twice")


def _is_worker_death(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, WORKER_DEATHS):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def _stream(job: Job, orders: list[pa.Table], numbers: list[int], tolerate_deaths: bool = False) -> Iterator[tuple[int, pa.Table]]:
    """Run orders through Ray Data; yields an order's number and its report as it ends."""
    context = DataContext.get_current().copy()
    context.max_errored_blocks = -1 if tolerate_deaths else 0
    context.enable_progress_bars = False
    with DataContext.current(context):
        dataset = ray.data.from_arrow([pack(number, orders[number]) for number in numbers])
        for stage in job.stages():
            dataset = _map(dataset, stage)
        for blocks in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in range(len(blocks)):
                yield unpack(blocks.slice(row, 1))


def pack(number: int, table: pa.Table) -> pa.Table:
    """An order, or the rows between two stages, as one row: Ray splits and joins rows as it likes, but never one row.

    So one part holds all of an order's rows, or the part is not there; and a stage on a GPU gets one order a batch.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.table({"number": [number], "rows": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


def unpack(packed: pa.Table) -> tuple[int, pa.Table]:
    """The number and the rows of `pack`."""
    with pa.ipc.open_stream(packed["rows"][0].as_buffer()) as reader:
        return packed["number"][0].as_py(), reader.read_all()


class PackedWorker:
    """A `Worker` on packed rows."""

    def __init__(self, stage: Stage) -> None:
        self._worker = Worker(stage)

    def __call__(self, packed: pa.Table) -> pa.Table:
        number, table = unpack(packed)
        return pack(number, self._worker(table))


def run_task(packed: pa.Table, stage: Stage) -> pa.Table:
    """A stage that loads nothing dear, as a plain task."""
    return PackedWorker(stage)(packed)


def _map(dataset: ray.data.Dataset, stage: Stage) -> ray.data.Dataset:
    """A stage as Ray Data runs it: an actor pool for steps that load weights, tasks for others."""
    resources = stage.resources
    common: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": resources.cpus, "num_gpus": resources.gpus or None}
    with warnings.catch_warnings():
        # Until Ray 2.63 this is the only way to bound retries; without a bound, a row that kills its worker is tried for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        if not resources.pooled:
            return dataset.map_batches(run_task, fn_kwargs={"stage": stage}, compute=TaskPoolStrategy(), max_retries=1, **common)
        pool = ActorPoolStrategy(min_size=1, max_size=_pool_limit(resources.cpus, resources.gpus))
        return dataset.map_batches(PackedWorker, fn_constructor_args=(stage,), compute=pool, max_restarts=4, max_task_retries=1, **common)


def _pool_limit(cpus: float, gpus: float) -> int:
    total = ray.cluster_resources()
    by_gpu = total.get("GPU", 0) / gpus if gpus else float("inf")
    return max(1, int(min(total.get("CPU", 1) / max(cpus, 0.01), by_gpu)))
