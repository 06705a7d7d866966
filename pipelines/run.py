"""The executor on Ray: tasks of a segment on Ray Data, and work over all rows on its shuffle.

It is the only module of this package that imports Ray.
"""

from __future__ import annotations

import contextlib
import importlib.util
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data.context import ShuffleStrategy
from ray.exceptions import RayError, RuntimeEnvSetupError
from ray.util.annotations import RayDeprecationWarning

from captioning.dialogue.conversation import Role
from captioning.engine import EngineError
from captioning.engines.vllm import PACKAGE, VLLM
from cluster import storage
from cluster.head import head_is_lost
from cluster.lost_workers import dead_nodes, is_worker_death, node_was_lost
from cluster.metrics import RETRIES
from cluster.resources import Resources
from cluster.session import cluster_size
from cluster.telemetry import log
from pipelines.engine.packed_tables import PackedWorker, SpreadWorker, pack, unpack
from pipelines.engine.shuffle import Rows, RowsFunction, partition_numbers
from pipelines.engine.step import RunError, TableFunction
from pipelines.engine.tables import new_end_marker, read_task, split_task
from pipelines.engine.worker import Job, Worker, failed_rows, without_done
from pipelines.steps._bulk_captions import BulkCaptions, bulk_captions_of, returned_columns

MAX_TRIES = 5
"""Times that work is begun again without a result in between because nodes were lost."""


def run_tasks(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """Run tasks on the connected Ray cluster and yield the report of each as it ends.

    A worker that dies, for instance because a decoder crashes on one file, costs no other row: rows without a result
    are retried with one row per task, and rows whose worker dies again are written as failed. For a lost node no row is
    failed: its tasks are begun again. An error in our own code or in the storage ends the run, as no row causes it.
    """
    if bulk := bulk_captions_of(job):
        ask_in_bulk(bulk, tasks)
    tries, lost = 0, True
    while lost and tries < MAX_TRIES:
        stream, dead = replace(job, end_marker=new_end_marker(job.folder)), dead_nodes()
        left = dict.fromkeys(range(len(tasks)))
        try:
            for number, report in _stream(stream, tasks, list(left)):
                del left[number]
                yield report
            return
        except RayError as error:
            if not is_worker_death(error):
                raise
        # Ray cannot end a running task for certain. From here on, none of this stream writes a part.
        storage.write_bytes(stream.end_marker, b"")
        tries = 1 if len(left) < len(tasks) else tries + 1
        tasks = without_done(job, [tasks[number] for number in left])
        if not tasks:
            return
        if lost := node_was_lost(dead):
            RETRIES.record(sum(map(len, tasks)), of="rows")
            log.warning(f"{job.segment.label}: a node was lost; {len(tasks)} tasks without a result are begun again")
    yield from _run_singles(job, [single for task in tasks for single in split_task(task)])


def _run_singles(job: Job, singles: list[pa.Table]) -> Iterator[pa.Table]:
    """Run tasks of one row each, whose workers may die, and yield the report of each as it ends."""
    RETRIES.record(len(singles), of="rows")
    log.warning(f"{job.segment.label}: a worker died; {len(singles)} rows without a result are retried one by one")
    for _ in range(MAX_TRIES):
        stream, dead = replace(job, end_marker=new_end_marker(job.folder)), dead_nodes()
        left = dict.fromkeys(range(len(singles)))
        for number, report in _stream(stream, singles, list(left), tolerate_deaths=True):
            del left[number]
            yield report
        storage.write_bytes(stream.end_marker, b"")
        singles = without_done(job, [singles[number] for number in left])
        if not singles or not node_was_lost(dead):
            break
    for single in singles:
        yield failed_rows(job, single, "WorkerDied: the process that worked on this row died twice")


def _stream(
    job: Job, tasks: list[pa.Table], numbers: list[int], tolerate_deaths: bool = False
) -> Iterator[tuple[int, pa.Table]]:
    """Run tasks through Ray Data and yield the number and report of each as it ends."""
    with _context(max_errored_blocks=-1 if tolerate_deaths else 0), _actor_names(kill=tolerate_deaths) as names:
        dataset = _packed(tasks, numbers)
        for stage in job.stages():
            # A worker that dies also fails the tasks that wait for it.
            in_flight = 1 if tolerate_deaths else None
            dataset = _map(dataset, partial(Worker, stage), stage.resources, names, in_flight=in_flight)
        yield from _results(dataset)


ActorOptions = Callable[[], dict[str, Any]]
"""Returns the Ray options of one more actor of a stream."""


@contextlib.contextmanager
def _actor_names(kill: bool = False) -> Iterator[ActorOptions]:
    """Name the actors of the block's stream, and kill them when it ends with an error or if `kill` is true.

    Ray Data lets go of its actors instead of ending them. Ray then keeps an actor, with its CPUs and GPUs, for as long
    as a reference to one of its results is alive, because the result may have to be computed again. The traceback of a
    worker's death and Ray Data's queues can hold such references for minutes: on a full cluster the next dataset would
    wait for these CPUs without end.
    """
    stream = uuid.uuid4().hex
    failed = True
    try:
        yield lambda: {"name": f"{stream}-{uuid.uuid4().hex}"}
        failed = False
    finally:
        ends = (failed or kill) and ray.is_initialized() and not head_is_lost()
        for name in ray.util.list_named_actors() if ends else []:
            if name.startswith(stream):
                # The actor may end in between.
                with contextlib.suppress(ValueError):
                    ray.kill(ray.get_actor(name))


def ask_in_bulk(bulk: BulkCaptions, tasks: list[pa.Table]) -> None:
    """Answer every question of tasks with Ray Data's LLM processors.

    Raises `RunError` if these are not available, before anything is asked, or if an engine fails. Answers are kept.
    """
    processors = {role: _processor(bulk.label, settings) for role, settings in bulk.engines.items()}
    resources = bulk.step.resources()

    def count(numbers: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
        with _actor_names() as names:
            yield from _results(_map(_packed(tasks, numbers), bulk.open_counter, resources, names))

    def put(role: Role, numbers: Sequence[int]) -> Iterator[pa.Table]:
        keep = partial(bulk.store, role=role, identity=bulk.identity(role))
        with _actor_names() as names:
            questions = _map(_packed(tasks, numbers), partial(bulk.open_batches, role), resources, names, SpreadWorker)
            kept = processors[role](questions).map_batches(keep, batch_size=None, batch_format="pyarrow")
            yield from kept.iter_batches(batch_size=None, batch_format="pyarrow")

    try:
        with _context():
            bulk.ask(tasks, count, put)
    except RayError as error:
        # The first error of a chain is ours or the engine's; later ones are Ray's.
        reason = str(error).partition("\n\nThe above exception")[0].strip().rpartition("\n")[2]
        raise RunError(f"{bulk.label}: asking in bulk failed: {reason}. Answers so far are kept; run again") from error


def _processor(label: str, settings: VLLM) -> Callable[[ray.data.Dataset], ray.data.Dataset]:
    """Return the function from questions to answers. Raises `RunError` if a package or a GPU is missing."""
    try:
        # This import takes two seconds.
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        config = vLLMEngineProcessorConfig(**settings.processor_config(ray.cluster_resources()))
        if not _is_installed(settings):
            raise EngineError(settings.not_installed_message)
        processor = build_processor(config, preprocess=settings.request, postprocess=returned_columns)
    except ImportError as error:
        raise RunError(
            f"{label}: engine {settings.name} needs Ray Data's LLM processors ({error}): "
            "pip install 'worldloom[models]'"
        ) from error
    except (EngineError, RuntimeEnvSetupError) as error:
        raise RunError(f"{label}: {error}") from error
    for name in processor.list_stage_names():
        # By default a batch that kills its engine is retried without end.
        processor.get_stage_by_name(name).map_batches_kwargs["max_task_retries"] = 1

    def process(questions: ray.data.Dataset) -> ray.data.Dataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RayDeprecationWarning)
            return processor(questions)

    return process


def _is_installed(settings: VLLM, gpus: float = 1) -> bool:
    """Return whether the engine's workers have its package. This creates the runtime environment if it needs one."""

    # A local function is pickled by value: a runtime environment of the workers may lack this package.
    def find() -> bool:
        return importlib.util.find_spec(PACKAGE) is not None

    options = {
        "num_cpus": 0,
        "num_gpus": gpus,
        "runtime_env": settings.ray_runtime_env,
        "accelerator_type": settings.accelerator_type,
    }
    found: bool = ray.get(ray.remote(find).options(**options).remote())
    return found


def map_tables(
    load: Callable[[], TableFunction],
    wanted: Iterable[pa.Table],
    resources: Resources,
    *,
    tolerate_deaths: bool = False,
) -> Iterator[pa.Table]:
    """Yield the function's result for each table as it ends. A worker that dies is replaced and its table retried.

    With `tolerate_deaths` a table that kills its worker twice, without others that wait for that worker, has no result,
    and Ray logs the error.
    """

    def mapped(packed: list[ray.ObjectRef]) -> Iterator[tuple[int, pa.Table]]:
        with _context(max_errored_blocks=-1 if tolerate_deaths else 0), _actor_names(kill=tolerate_deaths) as names:
            # A worker that dies also fails the tables that wait for it. One must wait, or Ray starts no second worker.
            in_flight = 2 if tolerate_deaths else None
            yield from _results(_map(ray.data.from_arrow_refs(packed), load, resources, names, in_flight=in_flight))

    # Ray's object store, which spills to disk, has the tables, and this process one of them at a time.
    waiting = {number: ray.put(pack(number, table)) for number, table in enumerate(wanted)}
    for number, result in mapped(list(waiting.values())):
        del waiting[number]
        yield result
    for packed in waiting.values():
        yield from (result for _, result in mapped([packed]))


def _packed(wanted: Sequence[pa.Table], numbers: Sequence[int]) -> ray.data.Dataset:
    return ray.data.from_arrow([pack(number, wanted[number]) for number in numbers])


def _results(dataset: ray.data.Dataset) -> Iterator[tuple[int, pa.Table]]:
    """Yield number and rows of packed tables as they end."""
    for blocks in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in range(len(blocks)):
            yield unpack(blocks.slice(row, 1))


@contextlib.contextmanager
def _context(max_errored_blocks: int = 0) -> Iterator[None]:
    """Apply our Ray Data settings to datasets that are made or run in the block."""
    context = DataContext.get_current().copy()
    context.max_errored_blocks = max_errored_blocks
    context.enable_progress_bars = False
    # Its results spill to disk. On a small table it starts in 0.2 s, the hash shuffles of Ray 2.60 in 1 and 4 s.
    context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    with DataContext.current(context):
        yield


LoadingWorker = type[PackedWorker] | type[SpreadWorker]


def run_task(packed: pa.Table, load: Callable[[], Any], worker: LoadingWorker) -> pa.Table | Iterator[pa.Table]:
    """Run a function that loads no weights, as a plain Ray task."""
    return worker(load)(packed)


def _map(
    dataset: ray.data.Dataset,
    load: Callable[[], Any],
    resources: Resources,
    names: ActorOptions,
    worker: LoadingWorker = PackedWorker,
    in_flight: int | None = None,
) -> ray.data.Dataset:
    """Map a function over a dataset: in an actor pool if it loads weights, else in plain tasks.

    `in_flight` bounds the tables that wait at each actor.
    """
    common: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus or None,
    }
    with warnings.catch_warnings():
        # Until Ray 2.63 these arguments are the only way to bound retries and to name actors. With unbounded retries a
        # row that kills its worker never ends.
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
        # A task kills at most two workers. A bound on restarts would leave later tasks waiting without a worker.
        return dataset.map_batches(
            worker,
            fn_constructor_args=(load,),
            compute=pool,
            ray_remote_args_fn=names,
            max_restarts=-1,
            max_task_retries=1,
            **common,
        )


def _pool_limit(resources: Resources) -> int | None:
    """Return the most workers of a pool: what the cluster has room for, or no limit where it may grow for them."""
    cluster = cluster_size()
    if cluster.may_grow:
        return resources.max_workers
    by_gpu = cluster.gpus / resources.gpus if resources.gpus else float("inf")
    limit = resources.max_workers or float("inf")
    return max(1, int(min(cluster.cpus / max(resources.cpus, 0.01), by_gpu, limit)))


PARTITION = "__partition"
PARTITIONS_PER_CPU = 4
"""More than one, so that a core with heavy keys does not delay the others for long."""


def rows(tasks: list[pa.Table], columns: list[str]) -> RayRows:
    """Return these columns of the rows of tasks, in Ray's object store."""
    with _context():
        packed = _packed(tasks, range(len(tasks)))
    read = partial(_read_packed, columns=columns)
    return RayRows(
        packed.map_batches(read, batch_size=1, batch_format="pyarrow"),
        read_task(tasks[0].slice(0, 1), columns).slice(0, 0),
    )


def _read_packed(packed: pa.Table, columns: list[str]) -> pa.Table:
    return read_task(unpack(packed)[1], columns)


@dataclass(frozen=True)
class RayRows:
    """Rows in Ray's object store, which spills to disk what does not fit."""

    dataset: ray.data.Dataset
    empty: pa.Table
    """A table of the same schema without rows."""

    def map(self, function: RowsFunction) -> RayRows:
        return RayRows(
            self.dataset.map_batches(function, batch_size=None, batch_format="pyarrow"), function(self.empty)
        )

    def grouped(self, key: str, function: RowsFunction) -> RayRows:
        # Ray calls the function once per group. Our group is a partition of keys, so that calls are few.
        n = PARTITIONS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        numbered = self.dataset.map_batches(partial(_number, key=key, n=n), batch_size=None, batch_format="pyarrow")
        empty = function(self.empty)
        with _context():
            numbered = numbered.materialize()
            if not numbered.count():
                return RayRows(ray.data.from_arrow(empty), empty)
            groups = numbered.groupby(PARTITION, num_partitions=n)
            # Materialised here, so that a result that is used twice is computed once.
            return RayRows(
                groups.map_groups(partial(_ungrouped, function=function), batch_format="pyarrow").materialize(), empty
            )

    def union(self, *others: Rows) -> RayRows:
        assert all(isinstance(other, RayRows) for other in others)
        datasets = [other.dataset for other in others if isinstance(other, RayRows)]
        return RayRows(self.dataset.union(*datasets), self.empty)

    def stored(self) -> RayRows:
        with _context():
            return RayRows(self.dataset.materialize(), self.empty)

    def collect(self) -> pa.Table:
        with _context():
            tables = [
                table for table in self.dataset.iter_batches(batch_size=None, batch_format="pyarrow") if len(table)
            ]
        return pa.concat_tables([self.empty, *tables]).combine_chunks()


def _number(table: pa.Table, key: str, n: int) -> pa.Table:
    """Add the partition of each row's key to a table."""
    return table.append_column(PARTITION, pa.array(partition_numbers(table[key], n)))


def _ungrouped(table: pa.Table, function: RowsFunction) -> pa.Table:
    return function(table.drop_columns([PARTITION]))
