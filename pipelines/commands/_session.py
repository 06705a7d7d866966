"""Where the work of one command runs: in this process, or on the Ray cluster that the recipe names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import pyarrow as pa

from cluster.config import ConfigError
from cluster.ray_settings import RaySettings
from cluster.resources import ClusterSize, Resources
from pipelines import inline
from pipelines.engine.executor import Executor
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import TableFunction
from pipelines.engine.worker import Job
from training.workers import Device, WorkerRequest


class Session:
    """An executor that connects to Ray when the first task needs it: a run with nothing to do does not wait for Ray.

    It is a context manager, and disconnects at its end.
    """

    def __init__(self, ray: RaySettings, in_process: bool = False) -> None:
        self._ray, self.in_process = ray, in_process
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def connect(self) -> None:
        """Connect to Ray, unless everything runs in this process."""
        if not self.in_process:
            from cluster.session import ray_connection  # imports Ray, which takes a third of a second

            self._stack.enter_context(ray_connection(self._ray))

    def check_workers(self, request: WorkerRequest) -> None:
        """Raise `ConfigError` if there is no room for the workers of a training, before anything else is done.

        Connects to Ray unless any cluster has room, as for `workers: auto`.
        """
        if request.always_fits:
            return
        if self.in_process:
            check_device(request.device)
            return
        try:
            request.check(self.cluster_size())
        except ValueError as error:
            raise ConfigError(f"train.workers: {error}") from error

    def cluster_size(self) -> ClusterSize:
        """Return the CPU cores and GPUs of the cluster, after connecting to it; one core for this process."""
        if self.in_process:
            return ClusterSize(1.0)
        from cluster.session import cluster_size  # imports Ray, which takes a third of a second

        self._executor()
        return cluster_size()

    def run_tasks(self, job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        return self._executor().run_tasks(job, tasks)

    def rows(self, tasks: list[pa.Table], columns: list[str]) -> Rows:
        return self._executor().rows(tasks, columns)

    def map_tables(
        self,
        load: Callable[[], TableFunction],
        inputs: Iterable[pa.Table],
        resources: Resources,
        *,
        tolerate_deaths: bool = False,
    ) -> Iterator[pa.Table]:
        return self._executor().map_tables(load, inputs, resources, tolerate_deaths=tolerate_deaths)

    def _executor(self) -> Executor:
        if self.in_process:
            return inline
        # Before connecting: this import, of half a second, resets the level at which Ray Data logs.
        from pipelines import run

        self.connect()
        return run


def check_device(choice: Device) -> None:
    """Raise `ConfigError` if this process cannot train on a device."""
    if choice == "cuda":
        from training.device import device_for  # imports torch, which takes 2 s

        try:
            device_for(choice)
        except ValueError as error:
            raise ConfigError(f"train.device: {error}") from error


@contextlib.contextmanager
def opened(session: Session | None, ray: RaySettings, in_process: bool) -> Iterator[Any]:
    """Yield the session of a caller, which stays open, or a new one for the length of the block."""
    if session is not None:
        yield session
        return
    with Session(ray, in_process) as own:
        yield own
