"""The one place of this package that knows Ray: orders of a segment on Ray Data, and work over all rows on its shuffle."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.context import ShuffleStrategy
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)
from ray.util.annotations import RayDeprecationWarning

from captioning.dialogue.conversation import Who
from captioning.engine import EngineError
from captioning.engines.vllm import PACKAGE, VLLM
from cluster.resources import Resources
from cluster.telemetry import log
from pipelines.engine.shuffle import Rows, RowsFunction
from pipelines.engine.step import RunError, TableFunction
from pipelines.engine.tables import read_task, split_task
from pipelines.engine.worker import Job, Worker, failed_rows
from pipelines.steps._bulk_captions import Batches, Bulk, bulk_of, trimmed

WORKER_DEATHS = (WorkerCrashedError, ActorDiedError, ActorUnavailableError, OutOfMemoryError)


def run_tasks(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """Reports of orders as they end, on whatever Ray is connected.

    A worker that dies (a decoder that crashes on one file, say) takes no other row with it: what has no part yet is done
    again a row an order, and the rows whose worker dies again are written as failed. An error in our own code or in the
    storage ends the run instead; it is no row's fault.
    """
    if bulk := bulk_of(job):
        ask_in_bulk(bulk, tasks)
    left = list(range(len(tasks)))
    try:
        for number, report in _stream(job, tasks, left):
            left.remove(number)
            yield report
        return
    except RayError as error:
        if not _is_worker_death(error):
            raise
    singles = [single for number in left for single in split_task(tasks[number])]
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


def _stream(
    job: Job, tasks: list[pa.Table], numbers: list[int], tolerate_deaths: bool = False
) -> Iterator[tuple[int, pa.Table]]:
    """Run orders through Ray Data; yields an order's number and its report as it ends."""
    with _context(max_errored_blocks=-1 if tolerate_deaths else 0):
        dataset = _packed(tasks, numbers)
        for stage in job.stages():
            # A worker that dies fails what waits for it, too.
            dataset = _map(dataset, partial(Worker, stage), stage.resources, in_flight=1 if tolerate_deaths else None)
        yield from _results(dataset)


def ask_in_bulk(bulk: Bulk, tasks: list[pa.Table]) -> None:
    """Have every question of orders answered by Ray Data's own LLM processors.

    Raises `RunError` where these cannot be had, before anything is asked, and where an engine fails; what was answered is kept.
    """
    processors = {who: _processor(bulk.label, settings) for who, settings in bulk.engines.items()}
    resources = bulk.step.resources()

    def count(numbers: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
        return _results(_map(_packed(tasks, numbers), bulk.counting, resources))

    def put(who: Who, numbers: Sequence[int]) -> Iterator[pa.Table]:
        questions = _map(_packed(tasks, numbers), partial(bulk.asking, who), resources, SpreadWorker)
        keep = partial(bulk.keep, who=who, identity=bulk.identity(who))
        kept = processors[who](questions).map_batches(keep, batch_size=None, batch_format="pyarrow")
        yield from kept.iter_batches(batch_size=None, batch_format="pyarrow")

    try:
        with _context():
            bulk.ask(tasks, count, put)
    except RayError as error:
        # The first error of a chain is ours or the engine's; those after it are Ray's.
        reason = str(error).partition("\n\nThe above exception")[0].strip().rpartition("\n")[2]
        raise RunError(f"{bulk.label}: asking in bulk failed: {reason}. Answers so far are kept; run again") from error


def _processor(label: str, settings: VLLM) -> Callable[[ray.data.Dataset], ray.data.Dataset]:
    """From questions to answers, when all that it takes is there."""
    try:
        from ray.data.llm import (
            build_processor,
            vLLMEngineProcessorConfig,
        )  # takes two seconds, which nobody else need wait for

        config = vLLMEngineProcessorConfig(**settings.config(ray.cluster_resources()))
        if not _is_installed(settings):
            raise EngineError(settings.not_installed)
        processor = build_processor(config, preprocess=settings.request, postprocess=trimmed)
    except ImportError as error:
        raise RunError(
            f"{label}: engine {settings.name} needs Ray Data's LLM processors ({error}): pip install 'worldloom[models]'"
        ) from error
    except (EngineError, RuntimeEnvSetupError) as error:
        raise RunError(f"{label}: {error}") from error
    for name in processor.list_stage_names():
        # By default a batch that kills its engine is tried for ever.
        processor.get_stage_by_name(name).map_batches_kwargs["max_task_retries"] = 1

    def process(questions: ray.data.Dataset) -> ray.data.Dataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return processor(questions)

    return process


def _is_installed(settings: VLLM, gpus: float = 1) -> bool:
    """Whether a worker as the engine's has the package. An environment that is made for it is made here."""

    # A function without a name to import it by travels as code: an environment of the workers' own may lack this package.
    def find() -> bool:
        return importlib.util.find_spec(PACKAGE) is not None

    options = {
        "num_cpus": 0,
        "num_gpus": gpus,
        "runtime_env": settings.runtime_env,
        "accelerator_type": settings.accelerator_type,
    }
    found: bool = ray.get(ray.remote(find).options(**options).remote())
    return found


def map_tables(load: Callable[[], TableFunction], wanted: list[pa.Table], resources: Resources) -> Iterator[pa.Table]:
    """What the function makes of each table, as it ends. A worker that dies is replaced, and its table done once more."""
    with _context():
        packed = _packed(wanted, range(len(wanted)))
        for _, result in _results(_map(packed, load, resources)):
            yield result


def _packed(wanted: Sequence[pa.Table], numbers: Sequence[int]) -> ray.data.Dataset:
    return ray.data.from_arrow([pack(number, wanted[number]) for number in numbers])


def _results(dataset: ray.data.Dataset) -> Iterator[tuple[int, pa.Table]]:
    """Numbers and rows of packed tables, as they end."""
    for blocks in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in range(len(blocks)):
            yield unpack(blocks.slice(row, 1))


@contextlib.contextmanager
def _context(max_errored_blocks: int = 0) -> Iterator[None]:
    """Ray Data's settings for the datasets that are made or run in the block."""
    context = DataContext.get_current().copy()
    context.max_errored_blocks = max_errored_blocks
    context.enable_progress_bars = False
    # Plain tasks, whose results spill to disk. Started for a small table it takes 0.2 s, the hash shuffles of Ray 2.60 1 and 4 s.
    context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    with DataContext.current(context):
        yield


PACKED_SCHEMA = pa.schema([("number", pa.int64()), ("rows", pa.large_binary()), ("fault", pa.string())])


def pack(number: int, table: pa.Table) -> pa.Table:
    """An order, or the rows between two stages, as one row: Ray splits and joins rows as it likes, but never one row.

    So one part holds all of an order's rows, or the part is not there; and a stage on a GPU gets one order a batch.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.table({"number": [number], "rows": [sink.getvalue().to_pybytes()], "fault": [None]}, PACKED_SCHEMA)


def pack_fault(number: int, error: RunError) -> pa.Table:
    """In place of rows, what ends the run: raised in a worker, Ray would bury it in its own errors, or take it for the worker's death."""
    return pa.table({"number": [number], "rows": [None], "fault": [str(error)]}, PACKED_SCHEMA)


def unpack(packed: pa.Table) -> tuple[int, pa.Table]:
    """The number and the rows of `pack`. Raises the `RunError` of `pack_fault`."""
    if packed["fault"][0].is_valid:
        raise RunError(packed["fault"][0].as_py())
    with pa.ipc.open_stream(packed["rows"][0].as_buffer()) as reader:
        return packed["number"][0].as_py(), reader.read_all()


class PackedWorker:
    """A function on packed rows, with what it needs, which is loaded with the first of them."""

    def __init__(self, load: Callable[[], TableFunction]) -> None:
        self._load = load
        self._function: TableFunction | None = None

    def __call__(self, packed: pa.Table) -> pa.Table:
        number = packed["number"][0].as_py()
        try:
            number, table = unpack(packed)
            self._function = self._function or self._load()
            return pack(number, self._function(table))
        except RunError as error:
            return pack_fault(number, error)


class SpreadWorker:
    """A function from packed rows to several tables, whose rows go on each by itself."""

    def __init__(self, load: Callable[[], Batches]) -> None:
        self._function = load()

    def __call__(self, packed: pa.Table) -> Iterator[pa.Table]:
        yield from self._function(unpack(packed)[1])


LoadingWorker = type[PackedWorker] | type[SpreadWorker]


def run_task(packed: pa.Table, load: Callable[[], Any], worker: LoadingWorker) -> pa.Table | Iterator[pa.Table]:
    """A function that loads nothing dear, as a plain task."""
    return worker(load)(packed)


def _map(
    dataset: ray.data.Dataset,
    load: Callable[[], Any],
    resources: Resources,
    worker: LoadingWorker = PackedWorker,
    in_flight: int | None = None,
) -> ray.data.Dataset:
    """A function as Ray Data runs it: in an actor pool if it needs weights, else in tasks. A worker is given `in_flight` tables at once at most."""
    common: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus or None,
    }
    with warnings.catch_warnings():
        # Until Ray 2.63 this is the only way to bound retries; without a bound, a row that kills its worker is tried for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        if not resources.pooled:
            return dataset.map_batches(
                run_task,
                fn_kwargs={"load": load, "worker": worker},
                compute=TaskPoolStrategy(),
                max_retries=1,
                **common,
            )
        pool = ActorPoolStrategy(min_size=1, max_size=_pool_limit(resources), max_tasks_in_flight_per_actor=in_flight)
        # An order takes at most two workers with it. A bound on restarts would leave the orders behind it without any, waiting for ever.
        return dataset.map_batches(
            worker, fn_constructor_args=(load,), compute=pool, max_restarts=-1, max_task_retries=1, **common
        )


def _pool_limit(resources: Resources) -> int:
    total = ray.cluster_resources()
    by_gpu = total.get("GPU", 0) / resources.gpus if resources.gpus else float("inf")
    limit = resources.max_workers or float("inf")
    return max(1, int(min(total.get("CPU", 1) / max(resources.cpus, 0.01), by_gpu, limit)))


PARTITION = "__partition"

PARTITIONS_PER_CPU = 4
"""More than one, so that a core that gets heavy keys does not hold up the others for long."""


def rows(tasks: list[pa.Table], columns: list[str]) -> RayRows:
    """Some columns of the rows that orders are for."""
    with _context():
        packed = ray.data.from_arrow([pack(number, task) for number, task in enumerate(tasks)])
    read = partial(_read_packed, columns=columns)
    return RayRows(
        packed.map_batches(read, batch_size=1, batch_format="pyarrow"),
        read_task(tasks[0].slice(0, 1), columns).slice(0, 0),
    )


def _read_packed(packed: pa.Table, columns: list[str]) -> pa.Table:
    return read_task(unpack(packed)[1], columns)


@dataclass(frozen=True)
class RayRows:
    """Rows in Ray's object store, which spills to disk what does not fit. `none` is a table of none of them."""

    dataset: ray.data.Dataset
    none: pa.Table

    def map(self, function: RowsFunction) -> RayRows:
        return RayRows(self.dataset.map_batches(function, batch_size=None, batch_format="pyarrow"), function(self.none))

    def grouped(self, key: str, function: RowsFunction) -> RayRows:
        # Ray calls a function for each group; a group of ours is a partition of keys, so that a call is worth its while.
        n = PARTITIONS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        numbered = self.dataset.map_batches(partial(_number, key=key, n=n), batch_size=None, batch_format="pyarrow")
        none = function(self.none)
        with _context():
            numbered = numbered.materialize()
            if not numbered.count():
                return RayRows(ray.data.from_arrow(none), none)
            groups = numbered.groupby(PARTITION, num_partitions=n)
            # Done at once, and once: a result that is used twice is not made twice.
            return RayRows(
                groups.map_groups(partial(_ungrouped, function=function), batch_format="pyarrow").materialize(), none
            )

    def union(self, *others: Rows) -> RayRows:
        assert all(isinstance(other, RayRows) for other in others)
        return RayRows(self.dataset.union(*(other.dataset for other in others)), self.none)  # type: ignore[attr-defined]

    def collect(self) -> pa.Table:
        with _context():
            tables = [
                table for table in self.dataset.iter_batches(batch_size=None, batch_format="pyarrow") if len(table)
            ]
        return pa.concat_tables([self.none, *tables]).combine_chunks()


def _number(table: pa.Table, key: str, n: int) -> pa.Table:
    """The table with the partition each row's key falls in."""
    keys = table[key].combine_chunks()
    if pa.types.is_string(keys.type):
        numbers = np.array([zlib.crc32(value.encode()) for value in keys.to_pylist()], np.uint64)
    else:
        # Neighbouring keys are spread by a multiplication with 2^64 / golden ratio (Knuth, TAOCP vol. 3, 6.4).
        numbers = (keys.to_numpy(zero_copy_only=False).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(
            33
        )
    return table.append_column(PARTITION, pa.array((numbers % np.uint64(n)).astype(np.int64)))


def _ungrouped(table: pa.Table, function: RowsFunction) -> pa.Table:
    return function(table.drop_columns([PARTITION]))
