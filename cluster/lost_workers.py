"""Lost workers and nodes of the connected Ray cluster: which errors they cause, and whether a node was lost."""

from __future__ import annotations

import time

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)

WORKER_DEATHS = (
    WorkerCrashedError,
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    NodeDiedError,
    LocalRayletDiedError,
    ObjectLostError,
)
"""Errors of Ray for work that was lost with its worker, or whose input was lost with its node."""
NOTICE_S = 25.0
"""Longest wait for Ray to notice that a node was lost: by default after five health checks, 3 s apart."""
POLL_S = 0.5


def is_worker_death(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, is that of a lost worker."""
    while error is not None:
        if isinstance(error, WORKER_DEATHS):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def dead_nodes() -> set[str]:
    """Return the ids of the nodes that the connected cluster has lost so far; none without a connection."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]} if ray.is_initialized() else set()


def node_was_lost(before: set[str]) -> bool:
    """Return whether a node was lost since `dead_nodes` returned `before`, which Ray may be about to notice."""
    end_s = time.monotonic() + NOTICE_S
    while not (lost := bool(dead_nodes() - before)):
        # A cluster of one node has none to lose.
        if not ray.is_initialized() or len(ray.nodes()) == 1 or time.monotonic() > end_s:
            break
        time.sleep(POLL_S)
    return lost
