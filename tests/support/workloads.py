"""Workloads of training steps for tests of assignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.arrays import Int64Array
from training.data.assignment import Assignment, Workload


def workload_of(sizes: Sequence[int], costs: Sequence[int] | None = None) -> Workload:
    """Return the workload of samples with these numbers of tokens, those of one size in one bucket.

    Without `costs`, they grow with the size as those of a transformer do.
    """
    tokens = np.array(sizes)
    found, first, buckets = np.unique(tokens, return_index=True, return_inverse=True)
    by_bucket = np.array(costs)[first] if costs else found * (64 + found)
    return Workload(2 * buckets, *(np.stack((column, column), axis=1) for column in (by_bucket, found)))


def idle_share(costs: Int64Array, assignment: Assignment, world_size: int) -> float:
    """Return the share of time that ranks wait for the slowest one of each micro-step."""
    loads = assignment.loads(costs, world_size)
    return 1 - float(loads.sum() / (world_size * loads.max(axis=1).sum()))
