"""The CPU cores and GPUs that one worker process reserves, for captioners, text encoders and curation steps alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPUs that one worker reserves."""

    cpus: float = 1.0
    gpus: float = 0.0
    pooled: bool = False
    """Whether the worker loads weights: such workers stay in an actor pool and are reused."""
    max_workers: int | None = None
    """Largest useful number of workers: 1 for a captioner whose rate limits hold for the whole run. None: no limit."""
