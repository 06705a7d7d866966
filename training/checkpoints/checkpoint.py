"""Complete checkpoints of a run and where to find them. This module imports neither torch nor Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from cluster import storage
from cluster.telemetry import log

MARKER = "complete.json"
"""File that rank 0 writes last, when the files of all ranks are complete; a folder without it is not a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint and how it was written."""

    uri: str
    step: int
    """Steps taken; also the next step to take, because steps count from 0."""
    workers: int
    zero_stage: int


@cache
def _warn_once(message: str) -> None:
    # Checkpoints are listed several times per run.
    log.warning(message)


def newest_checkpoint(run_uri: str) -> Checkpoint | None:
    """Return the complete checkpoint of a run with the most steps, or None."""
    found = complete_checkpoints(run_uri)
    return found[-1] if found else None


def complete_checkpoints(run_uri: str) -> list[Checkpoint]:
    """Return all complete checkpoints of a run, sorted by step. One whose marker is damaged is left out, with a
    warning.
    """
    checkpoints = []
    for entry in storage.list_files(storage.join(run_uri, "checkpoints"), MARKER):
        folder_uri = entry.uri.rpartition("/")[0]
        try:
            marker = json.loads(storage.read_bytes(entry.uri))
            checkpoints.append(Checkpoint(folder_uri, marker["step"], marker["workers"], marker["zero_stage"]))
        except (ValueError, KeyError, TypeError):
            _warn_once(f"{entry.uri}: is damaged, and its checkpoint is not used")
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
