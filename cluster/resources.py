"""What one worker process holds of a cluster: the same words for captioners, text encoders and curation steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPUs of one worker. `pooled` work loads weights, so its workers are kept in a pool and reused."""

    cpus: float = 1.0
    gpus: float = 0.0
    pooled: bool = False
    max_workers: int | None = None
    """Largest number of workers, where more would not help: those of a captioner share one address, say."""
