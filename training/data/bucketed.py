"""The policy `bucketed`: micro-batches of one bucket each, of about equal cost within a micro-step.

The samples of each bucket are split evenly into micro-batches that cost at most a ceiling. All micro-batches are sorted
by cost, and each next `world_size` of them are a micro-step. Several ceilings are tried, and the one whose micro-steps
take the least time is used.

The assignment follows from the number of samples of each shape. Only the samples of one rank are looked up one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.arrays import Int64Array
from training.data.assignment import Assignment, Workload, argsort_descending

# Shape suffixes: B buckets; 2: samples without and with their last-frame latent; R runs of equal micro-batches.

CEILINGS_64THS = np.rint(np.geomspace(192, 32, 40)).astype(np.int64)
"""Ceilings for the cost of a micro-batch, in 64ths of the costliest bucket's mean sample, from high to low. Of ceilings
that are equally fast the first is used, which has the fewest micro-steps."""


def assign_bucketed(workload: Workload, world_size: int, max_tokens: int | None) -> Assignment:
    """Assign samples as micro-batches of one bucket, in which no rank has more than `max_tokens`; None sets no limit.

    A bucket's samples go to its micro-batches in turn, those with a last-frame latent first.
    """
    all_counts_B2 = np.bincount(workload.shape_ids, minlength=workload.costs_B2.size).reshape(-1, 2)
    (buckets_B,) = np.nonzero(all_counts_B2.any(axis=1))
    counts_B2, costs_B2 = all_counts_B2[buckets_B], workload.costs_B2[buckets_B]
    counts_B = counts_B2.sum(axis=1)
    if max_tokens is None:
        min_batches_B = np.ones_like(counts_B)
    else:
        min_batches_B = _min_batches(workload.tokens_B2[buckets_B], counts_B2, max_tokens)
    mean_costs_B = (counts_B2 * costs_B2).sum(axis=1) // counts_B
    n_batches_B = _fastest_batches(mean_costs_B, counts_B, min_batches_B, world_size)
    # Samples of each micro-batch, and those among them with a last-frame latent; the first few batches have one more.
    size_B, n_larger_B = np.divmod(counts_B, n_batches_B)
    last_frames_B, n_more_last_frames_B = np.divmod(counts_B2[:, 1], n_batches_B)
    # So the micro-batches of a bucket have one of three costs at most, one run of micro-batches after the other.
    starts_3B = np.stack(
        (
            np.zeros_like(n_larger_B),
            np.minimum(n_larger_B, n_more_last_frames_B),
            np.maximum(n_larger_B, n_more_last_frames_B),
        )
    )
    lengths_3B = np.diff(starts_3B, axis=0, append=n_batches_B[None])
    sizes_3B = size_B + (starts_3B < n_larger_B)
    last_frames_3B = last_frames_B + (starts_3B < n_more_last_frames_B)
    batch_costs_3B = sizes_3B * costs_B2[:, 0] + last_frames_3B * (costs_B2[:, 1] - costs_B2[:, 0])
    (not_empty,) = np.nonzero(lengths_3B.ravel())
    sorted_R = not_empty[argsort_descending(batch_costs_3B.ravel()[not_empty])]
    ends_R = lengths_3B.ravel()[sorted_R].cumsum()
    bucket_R = sorted_R % len(buckets_B)
    return _BatchRuns(
        n_micro_steps=-(-int(ends_R[-1]) // world_size),
        workload=workload,
        world_size=world_size,
        buckets_R=buckets_B[bucket_R],
        n_batches_R=n_batches_B[bucket_R],
        starts_R=starts_3B.ravel()[sorted_R],
        ends_R=ends_R,
    )


def _min_batches(tokens_B2: Int64Array, counts_B2: Int64Array, max_tokens: int) -> Int64Array:
    """Return the smallest number of micro-batches of each bucket from which on none has more than `max_tokens`.

    Samples of both shapes go to micro-batches in turn, so each micro-batch has as many of a shape as another, or one
    more.
    """
    small, large = np.where(counts_B2 > 0, tokens_B2, tokens_B2[:, ::-1]).T
    extra, n_large, counts = large - small, counts_B2[:, 1], counts_B2.sum(axis=1)
    # Bisection between two bounds: all tokens together need `low`, and `high` is enough if every sample is a large one.
    low: Int64Array = -(-(counts * small + n_large * extra) // max_tokens)
    high = -(-counts // (max_tokens // large))
    while (low < high).any():
        middle = (low + high) // 2
        fits = -(-counts // middle) * small + -(-n_large // middle) * extra <= max_tokens
        low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
    return low


def _fastest_batches(
    mean_costs_B: Int64Array, counts_B: Int64Array, min_batches_B: Int64Array, world_size: int
) -> Int64Array:
    """Return the number of micro-batches of each bucket under the ceiling whose micro-steps take the least time.

    Buckets have `counts_B` samples, which fit into `min_batches_B` micro-batches. All ceilings are tried together, one
    per row. Floats divide several times as fast as integers, and quotients of integers this small are exact when
    rounded.
    """
    ceilings = mean_costs_B.max() * CEILINGS_64THS[:, None] // 64
    n_batches = np.maximum(np.ceil(counts_B / np.maximum(np.floor(ceilings / mean_costs_B), 1)), min_batches_B)
    max_costs = mean_costs_B * np.ceil(counts_B / n_batches).astype(np.int64)
    n_batches = n_batches.astype(np.int64)
    # Keys that sort buckets from the highest cost to the lowest, with their number of micro-batches as the low bits.
    bits, highest = int(n_batches.max()).bit_length(), max_costs.max()
    keys = (highest - max_costs) << bits
    keys |= n_batches
    keys.sort(axis=1)
    ends = (keys & ((1 << bits) - 1)).cumsum(axis=1)
    # A micro-step takes as long as its first micro-batch, and those at multiples of `world_size` are first.
    n_first = -(-ends // world_size)
    n_first[:, 1:] -= n_first[:, :-1].copy()
    times = (n_first * (highest - (keys >> bits))).sum(axis=1)
    fastest: Int64Array = n_batches[np.argmin(times)]
    return fastest


@dataclass(frozen=True, eq=False)
class _BatchRuns(Assignment):
    """An assignment by micro-batches from the costliest to the cheapest, stored as runs of equal ones of a bucket."""

    n_micro_steps: int
    workload: Workload
    world_size: int
    buckets_R: Int64Array
    n_batches_R: Int64Array
    """Number of all micro-batches of the run's bucket."""
    starts_R: Int64Array
    """Number of the run's first micro-batch among those of its bucket."""
    ends_R: Int64Array
    """Position after the run's last micro-batch among those of all runs."""

    def sample_indices(self, rank: int) -> list[Int64Array]:
        positions = np.arange(rank, self.ends_R[-1], self.world_size)
        run = np.searchsorted(self.ends_R, positions, side="right")
        batches = self.starts_R[run] + positions - np.append(0, self.ends_R)[run]
        buckets = self.buckets_R[run]
        is_needed = np.zeros(self.workload.costs_B2.shape, bool)
        is_needed[buckets] = True
        (indices,) = np.nonzero(is_needed.ravel()[self.workload.shape_ids])
        shape_ids = self.workload.shape_ids[indices]
        found = []
        for bucket, batch, n_batches in zip(
            buckets.tolist(), batches.tolist(), self.n_batches_R[run].tolist(), strict=True
        ):
            in_turn = np.concatenate((indices[shape_ids == 2 * bucket + 1], indices[shape_ids == 2 * bucket]))
            found.append(np.sort(in_turn[batch::n_batches]))
        return found + [indices[:0]] * (self.n_micro_steps - len(found))
