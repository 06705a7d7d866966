"""Assignment for models that cannot compute samples of several shapes together: micro-batches of one bucket each.

The samples of each bucket are split evenly into micro-batches that cost at most a ceiling. All micro-batches are sorted
by cost, and each next `world_size` of them are a micro-step. Several ceilings are tried, and the one whose micro-steps
take the least time is used.
"""

from __future__ import annotations

import numpy as np

from cluster.arrays import Int64Array
from training.data.assignment import Assignment, Workload, argsort_ascending, argsort_descending

# Shape suffixes: B buckets of the step, N samples.

CEILINGS_64THS = tuple(np.rint(np.geomspace(192, 32, 40)).astype(int).tolist())
"""Ceilings for the cost of a micro-batch, in 64ths of the costliest bucket's mean sample, from high to low. Of ceilings
that are equally fast the first is used, which has the fewest micro-steps."""


def assign_bucketed(workload: Workload, world_size: int, max_tokens: int | None) -> Assignment:
    """Assign samples as micro-batches of one bucket, in which no rank has more than `max_tokens`; None sets no limit.

    A bucket's samples go to its micro-batches in turn, those with a last-frame latent first.
    """
    _, buckets_N, counts_B = np.unique(workload.shape_ids // 2, return_inverse=True, return_counts=True)
    mean_costs_B = np.bincount(buckets_N, workload.costs).astype(np.int64) // counts_B
    min_batches_B = np.ones_like(counts_B)
    if max_tokens is not None:
        largest_B = np.zeros_like(counts_B)
        np.maximum.at(largest_B, buckets_N, workload.tokens)
        min_batches_B = -(-counts_B // (max_tokens // largest_B))
    n_batches_B = _fastest_batches(mean_costs_B, counts_B, min_batches_B, world_size)
    # Odd shape ids have a last-frame latent.
    order_N = argsort_ascending(2 * buckets_N + 1 - workload.shape_ids % 2)
    bucket_N = buckets_N[order_N]
    in_bucket_N = np.arange(len(order_N)) - (counts_B.cumsum() - counts_B)[bucket_N]
    batches = np.empty_like(order_N)
    batches[order_N] = (n_batches_B.cumsum() - n_batches_B)[bucket_N] + in_bucket_N % n_batches_B[bucket_N]
    # Sums of integers stay exact in floats up to 2 ** 53.
    costliest_first = argsort_descending(np.bincount(batches, workload.costs).astype(np.int64))
    position = np.empty_like(costliest_first)
    position[costliest_first] = np.arange(len(position))
    micro_steps, ranks = np.divmod(position[batches], world_size)
    return Assignment(-(-len(position) // world_size), micro_steps, ranks)


def _fastest_batches(
    mean_costs_B: Int64Array, counts_B: Int64Array, min_batches_B: Int64Array, world_size: int
) -> Int64Array:
    """Return the number of micro-batches of each bucket under the ceiling whose micro-steps take the least time.

    Buckets have `counts_B` samples and at least `min_batches_B` micro-batches. A micro-step takes as long as its first
    micro-batch, and those at multiples of `world_size` are first.
    """
    best_time, best = -1, min_batches_B
    for ceiling_64ths in CEILINGS_64THS:
        sizes = np.maximum(int(mean_costs_B.max()) * ceiling_64ths // 64 // mean_costs_B, 1)
        n_batches = np.maximum(-(-counts_B // sizes), min_batches_B)
        costs = np.repeat(mean_costs_B * -(-counts_B // n_batches), n_batches)
        time = int(np.sort(costs)[::-1][::world_size].sum())
        if best_time < 0 or time < best_time:
            best_time, best = time, n_batches
    return best
