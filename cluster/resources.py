"""The CPU cores and GPUs that one worker process reserves, and those that a cluster has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPUs that one worker reserves: a captioner's, a text encoder's or a curation step's."""

    cpus: float = 1.0
    gpus: float = 0.0
    pooled: bool = False
    """Whether the worker loads weights: such workers stay in an actor pool and are reused."""
    max_workers: int | None = None
    """Largest useful number of workers: 1 for a captioner whose rate limits hold for the whole run. None: no limit."""


@dataclass(frozen=True)
class ClusterSize:
    """CPU cores and GPUs of a cluster."""

    cpus: float
    gpus: float = 0.0
    may_grow: bool = False
    """Whether something manages the nodes that may add some, such as an autoscaler."""
