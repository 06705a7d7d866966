"""Dealing micro-batches of one bucket each, of about equal cost within a micro-step.

Each bucket's samples are split evenly into micro-batches below a ceiling of cost; these are sorted by cost, and each next `world_size` of them
are a micro-step. Of a number of ceilings the one is taken whose micro-steps take the least time.

All is known from how many samples there are of each kind, and only a worker's own are looked up one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.deal import Deal, Int64s, Samples
from training.data.order import falling

# Shape suffixes: B buckets; 2: samples without and with their last picture; R runs of equal micro-batches.

CEILINGS = np.rint(np.geomspace(192, 32, 40)).astype(np.int64)
"""Costs of a micro-batch that are tried, in 64ths of the dearest bucket's. Of equals the first is taken, which has the fewest micro-steps."""


def slot(samples: Samples, world_size: int, limit: int | None) -> Deal:
    """Micro-batches of one bucket each, whose samples are dealt to them in turn, those with their last picture first."""
    every_B2 = np.bincount(samples.kinds, minlength=samples.costs_B2.size).reshape(-1, 2)
    (buckets_B,) = np.nonzero(every_B2.any(axis=1))
    counts_B2, costs_B2 = every_B2[buckets_B], samples.costs_B2[buckets_B]
    counts_B = counts_B2.sum(axis=1)
    fewest_B = (
        np.ones_like(counts_B) if limit is None else _fewest_that_fit(samples.tokens_B2[buckets_B], counts_B2, limit)
    )
    n_batches_B = _fewest_seconds((counts_B2 * costs_B2).sum(axis=1) // counts_B, counts_B, fewest_B, world_size)
    return _deal(samples, world_size, buckets_B, counts_B2, costs_B2, n_batches_B)


def _fewest_that_fit(tokens_B2: Int64s, counts_B2: Int64s, limit: int) -> Int64s:
    """Least numbers of micro-batches of each bucket of which none has more tokens than the limit, nor has with any larger number of them.

    A sample has the tokens of its kind, without and with its last picture; those of either kind are dealt to micro-batches in turn.
    """
    least, most = np.where(counts_B2 > 0, tokens_B2, tokens_B2[:, ::-1]).T
    more, larger, counts = most - least, counts_B2[:, 1], counts_B2.sum(axis=1)
    # Between what all tokens together ask for, and what is enough where every sample is a larger one; halved until they meet.
    low: Int64s = -(-(counts * least + larger * more) // limit)
    high = -(-counts // (limit // most))
    while (low < high).any():
        middle = (low + high) // 2
        fits = -(-counts // middle) * least + -(-larger // middle) * more <= limit
        low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
    return low


def _fewest_seconds(cost_B: Int64s, counts_B: Int64s, fewest_B: Int64s, world_size: int) -> Int64s:
    """Numbers of micro-batches of each bucket, under the ceiling whose micro-steps take the least time.

    Buckets have `counts_B` samples of a mean cost, which fit into `fewest_B` micro-batches. All ceilings are tried at once, one a row; floats
    divide several times as fast as whole numbers, and quotients of ones this small are exact when rounded.
    """
    ceilings = cost_B.max() * CEILINGS[:, None] // 64
    n_batches = np.maximum(np.ceil(counts_B / np.maximum(np.floor(ceilings / cost_B), 1)), fewest_B)
    dearest = cost_B * np.ceil(counts_B / n_batches).astype(np.int64)
    n_batches = n_batches.astype(np.int64)
    # From the dearest to the cheapest, with how many there are of each as the low bits.
    bits, top = int(n_batches.max()).bit_length(), dearest.max()
    keys = (top - dearest) << bits
    keys |= n_batches
    keys.sort(axis=1)
    ends = (keys & ((1 << bits) - 1)).cumsum(axis=1)
    # A micro-step takes as long as its first micro-batch, and those at multiples of `world_size` are first.
    n_first = -(-ends // world_size)
    n_first[:, 1:] -= n_first[:, :-1].copy()
    seconds = (n_first * (top - (keys >> bits))).sum(axis=1)
    quickest: Int64s = n_batches[np.argmin(seconds)]
    return quickest


def _deal(
    samples: Samples, world_size: int, buckets_B: Int64s, counts_B2: Int64s, costs_B2: Int64s, n_batches_B: Int64s
) -> _Runs:
    """Micro-batches sorted by cost: each bucket's are of three kinds at most, since its samples of either kind are dealt to them in turn."""
    # Samples of each micro-batch, and with their last picture; the first few have one more.
    size_B, first_B = np.divmod(counts_B2.sum(axis=1), n_batches_B)
    larger_B, first_larger_B = np.divmod(counts_B2[:, 1], n_batches_B)
    turns = np.stack((np.zeros_like(first_B), np.minimum(first_B, first_larger_B), np.maximum(first_B, first_larger_B)))
    lengths = np.diff(turns, axis=0, append=n_batches_B[None])
    costs = (size_B + (turns < first_B)) * costs_B2[:, 0] + (larger_B + (turns < first_larger_B)) * (
        costs_B2[:, 1] - costs_B2[:, 0]
    )
    (some,) = np.nonzero(lengths.ravel())
    order_R = some[falling(costs.ravel()[some])]
    ends_R = lengths.ravel()[order_R].cumsum()
    bucket_R = order_R % len(buckets_B)
    n_micro = -(-int(ends_R[-1]) // world_size)
    return _Runs(
        n_micro, samples, world_size, buckets_B[bucket_R], n_batches_B[bucket_R], turns.ravel()[order_R], ends_R
    )


@dataclass(frozen=True, eq=False)
class _Runs(Deal):
    """Micro-batches from the dearest to the cheapest, as runs of equal ones."""

    n_micro: int
    samples: Samples
    world_size: int
    buckets_R: Int64s
    n_batches_R: Int64s
    """Of the run's bucket, whatever their cost."""
    turns_R: Int64s
    """Number of the run's first one among its bucket's."""
    ends_R: Int64s
    """Where the run ends in the order of all."""

    def of(self, rank: int) -> list[Int64s]:
        number = np.arange(rank, self.ends_R[-1], self.world_size)
        run = np.searchsorted(self.ends_R, number, side="right")
        turns = self.turns_R[run] + number - np.append(0, self.ends_R)[run]
        buckets = self.buckets_R[run]
        is_own = np.zeros(self.samples.costs_B2.shape, bool)
        is_own[buckets] = True
        (places,) = np.nonzero(is_own.ravel()[self.samples.kinds])
        kinds = self.samples.kinds[places]
        own = []
        for bucket, turn, n_batches in zip(
            buckets.tolist(), turns.tolist(), self.n_batches_R[run].tolist(), strict=True
        ):
            in_turn = np.concatenate((places[kinds == 2 * bucket + 1], places[kinds == 2 * bucket]))
            own.append(np.sort(in_turn[turn::n_batches]))
        return own + [places[:0]] * (self.n_micro - len(own))
