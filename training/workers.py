"""How many training processes a cluster has room for. This module imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from cluster.resources import ClusterSize

CORES_PER_WORKER = 2
"""CPU cores per worker of `workers: auto` where there is no GPU."""

Workers = Annotated[int, Field(ge=1)] | Literal["auto"]
"""A number of training processes, or the number that suits the cluster."""

WORKERS_DESCRIPTION = (
    "Training processes, with one GPU each on GPUs. auto: one per GPU of the cluster, or one per two CPU cores if it "
    "has no GPU."
)


MAX_FAILURES_DESCRIPTION = (
    "How often in a row lost workers are replaced and training resumes from the newest checkpoint; a new checkpoint "
    "begins the count anew."
)

Device = Literal["auto", "cuda", "cpu"]
"""Where a model trains."""

DEVICE_DESCRIPTION = (
    "Where the model trains. auto: on GPUs if there are any when training starts, else on CPUs; cuda: on GPUs alone, "
    "and a cluster that may grow has half an hour to start their nodes; cpu: on CPUs, although there may be GPUs."
)


def check_is_workers(value: object) -> object:
    """Return a value of the setting `workers`. Raises `ValueError` unless it is auto or a number from 1."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (is_number and value >= 1):  # type: ignore[operator]
        raise ValueError(f"write auto or a number from 1 (got {value!r})")
    return value


@dataclass(frozen=True)
class WorkerRequest:
    """The number of workers that a training asks for."""

    workers: Workers
    min_workers: int | None = None
    """Fewest workers to train with; None for `workers`."""
    multiple_of: int = 1
    """The number must be a multiple of this, as workers that share samples are grouped."""
    divides: tuple[int, ...] = ()
    """The number must divide each of these, as crops per step are divided among workers."""
    device: Device = "auto"

    @property
    def fewest(self) -> int:
        """The number of workers without which training does not start."""
        return self.min_workers or (self.multiple_of if self.workers == "auto" else self.workers)

    @property
    def always_fits(self) -> bool:
        """Whether every cluster has room for the workers."""
        return self.device != "cuda" and self.workers in (1, "auto") and self.fewest == 1

    def uses_gpus(self, cluster: ClusterSize) -> bool:
        """Return whether each worker takes a GPU of the cluster as it is now."""
        return self.device == "cuda" or (self.device == "auto" and cluster.gpus > 0)

    def resolve(self, cluster: ClusterSize) -> int:
        """Return `workers`, or for `auto` one per GPU and without GPUs one per two cores, but at least one."""
        if self.workers != "auto":
            return self.workers
        room = int(cluster.gpus if self.uses_gpus(cluster) else cluster.cpus / CORES_PER_WORKER)
        counts = range(self.multiple_of, room + 1, self.multiple_of)
        fitting = [count for count in counts if all(number % count == 0 for number in self.divides)]
        return max(fitting, default=self.multiple_of)

    def check(self, cluster: ClusterSize) -> str | None:
        """Return a message if training has to wait until the cluster has grown, else None.

        Raises `ValueError` if the cluster has too few GPUs or cores and nothing may add some: Ray would wait for ever.
        """
        workers = self.min_workers or self.resolve(cluster)
        noun, total = ("GPU", cluster.gpus) if self.uses_gpus(cluster) else ("CPU core", cluster.cpus)
        if workers <= total:
            return None
        need = "1 worker needs a" if workers == 1 else f"{workers} workers need one"
        needed = f"at least {need} {noun}{' each' if workers > 1 else ''}, and the cluster has {total:g}"
        if not cluster.may_grow:
            no_gpu = noun == "GPU" and not total
            fix = "add nodes with GPUs, or write device: auto" if no_gpu else "lower workers or min_workers"
            raise ValueError(f"{needed}; {fix}{'' if no_gpu else ', or write workers: auto'}")
        return f"{needed}; training waits until it has grown"
