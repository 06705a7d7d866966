"""Who computes what: the samples of a step dealt to workers and micro-steps, balanced by cost.

All workers wait for the dearest one in each micro-step, since ZeRO's collectives need all of them. So balance is wanted between the
workers of a micro-step; micro-steps may differ from each other. Three policies, by name: `same`, `slot` and `pack`.

Each worker deals the whole step and takes its part, so all have to come to the same result, whatever machine each runs on: costs are whole
numbers, whose sums do not depend on the order of adding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.data.order import falling, rising

Int64s = NDArray[np.int64]

Policy = Literal["same", "slot", "pack"]

SMALL, TINY = 128, 2048
"""Samples cheaper than a worker's mean share over this are poured over the workers instead of being dealt one after the other; tiny ones last."""
CEILINGS = np.arange(24, 3, -1)
"""Costs of a micro-batch that `slot` tries, in eighths of the dearest bucket's. Of equals it takes the first, which has the fewest micro-steps."""
HEADROOM = 9
"""Eighths of an even share that `pack` fills a worker to: at exactly an even share, samples of half of it just do not fit twice."""
GOOD_IDLE = 50
"""An idle share of one part in so many is good enough for `pack` to look no further."""
UNBOUNDED = 2**62


@dataclass(frozen=True, eq=False)
class Samples:
    """What is dealt: the samples of one step."""

    costs: Int64s
    """In any unit; all above 0."""
    tokens: Int64s
    shapes: Int64s
    """Number of each sample's bucket."""


@dataclass(frozen=True, eq=False)
class Deal:
    """Where each sample of a step goes; a worker may have none in a micro-step."""

    n_micro: int
    """Micro-steps of every worker."""
    micro: Int64s
    rank: Int64s

    def loads(self, costs: Int64s, world_size: int) -> Int64s:
        """Cost of every worker in every micro-step, `[n_micro, world_size]`."""
        # Sums of whole numbers stay exact in floats up to 2 ** 53.
        flat = np.bincount(self.micro * world_size + self.rank, costs, self.n_micro * world_size)
        return flat.reshape(self.n_micro, world_size).astype(np.int64)


def same(samples: Samples, world_size: int, limit: int | None) -> Deal:
    """Samples of one bucket, in equal numbers but for one."""
    assert (samples.shapes == samples.shapes[0]).all()
    place = np.arange(len(samples.costs))
    share = -(-len(place) // world_size)
    n_micro = 1 if limit is None else -(-share // (limit // int(samples.tokens.max())))
    return Deal(n_micro, place // world_size % n_micro, place % world_size)


def slot(samples: Samples, world_size: int, limit: int | None) -> Deal:
    """Micro-batches of one bucket each, of about equal cost within a micro-step.

    Each bucket's samples are split evenly into micro-batches below a ceiling of cost; these are sorted by cost, and each next
    `world_size` of them are a micro-step. Of a few ceilings the one is taken whose micro-steps take the least time.
    """
    # By bucket, and from the largest to the smallest in each: a last picture that is given is a latent frame more.
    bits = int(samples.tokens.max()).bit_length()
    keys = samples.shapes << bits
    keys -= samples.tokens
    keys += (1 << bits) - 1
    order = rising(keys)
    costs, tokens = samples.costs[order], samples.tokens[order]
    counts = np.bincount(samples.shapes)
    counts = counts[counts > 0]
    ends = counts.cumsum()
    first = ends - counts
    cost = np.add.reduceat(costs, first) // counts
    fewest = np.ones_like(counts)
    if limit is not None:
        fewest = _fewest_that_fit(tokens[ends - 1], tokens[first], counts, np.add.reduceat(tokens, first), limit)
    n_batches = _fewest_seconds(cost, counts, fewest, world_size)
    # The samples of a bucket go to its micro-batches in turn.
    turn = (np.arange(len(order)) - np.repeat(first, counts)) % np.repeat(n_batches, counts)
    batch = np.repeat(n_batches.cumsum() - n_batches, counts) + turn
    by_load = falling(np.bincount(batch, costs).astype(np.int64))
    place = np.empty(len(by_load), np.int64)
    place[by_load] = np.arange(len(by_load))
    where = np.empty(len(order), np.int64)
    where[order] = place[batch]
    micro = where // world_size
    return Deal(-(-len(by_load) // world_size), micro, where - micro * world_size)


def _fewest_that_fit(least: Int64s, most: Int64s, counts: Int64s, sums: Int64s, limit: int) -> Int64s:
    """Least numbers of micro-batches of each bucket of which none has more tokens than the limit, nor has with any larger number of them.

    Of `counts` samples each has the `least` or the `most` tokens, in all `sums`; those of either kind are dealt to micro-batches in turn.
    """
    more = most - least
    larger = (sums - counts * least) // np.maximum(more, 1)
    # Between what all tokens together ask for, and what is enough where every sample is a larger one; halved until they meet.
    low: Int64s = -(-sums // limit)
    high = -(-counts // (limit // most))
    while (low < high).any():
        middle = (low + high) // 2
        fits = -(-counts // middle) * least + -(-larger // middle) * more <= limit
        low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
    return low


def _fewest_seconds(cost: Int64s, counts: Int64s, fewest: Int64s, world_size: int) -> Int64s:
    """Numbers of micro-batches of each bucket, under the ceiling whose micro-steps take the least time.

    Buckets have `counts` samples of a mean `cost`, which fit into `fewest` micro-batches. All ceilings are tried at once, one a row; floats divide
    several times as fast as whole numbers, and quotients of ones this small are exact when rounded.
    """
    ceilings = cost.max() * CEILINGS[:, None] // 8
    n_batches = np.maximum(np.ceil(counts / np.maximum(np.floor(ceilings / cost), 1)), fewest)
    dearest = cost * np.ceil(counts / n_batches).astype(np.int64)
    n_batches = n_batches.astype(np.int64)
    # As `falling` does, in every row.
    bits = len(cost).bit_length()
    keys = (dearest.max() - dearest) << bits
    keys |= np.arange(len(cost))
    keys.sort(axis=1)
    ends = np.take_along_axis(n_batches, keys & ((1 << bits) - 1), axis=1).cumsum(axis=1)
    # A micro-step takes as long as its first micro-batch, and those at multiples of `world_size` are first.
    n_first = -(-ends // world_size)
    n_first[:, 1:] -= n_first[:, :-1].copy()
    seconds = (n_first * (dearest.max() - (keys >> bits))).sum(axis=1)
    quickest: Int64s = n_batches[np.argmin(seconds)]
    return quickest


def pack(samples: Samples, world_size: int, limit: int | None) -> Deal:
    """Several samples of any shapes a worker and micro-step, in about as few micro-steps as the limit of tokens allows.

    With room for all at once this is one micro-step. Otherwise there are two ways of dividing the samples; the second is tried where the first
    leaves workers idle, and the better one is taken.
    """
    if limit is None or int(samples.tokens.sum()) <= world_size * limit:
        return _pack(samples, world_size, limit, True)
    first = _pack(samples, world_size, limit, True)
    seconds = int(first.loads(samples.costs, world_size).max(axis=1).sum())
    if (GOOD_IDLE - 1) * world_size * seconds <= GOOD_IDLE * int(samples.costs.sum()):
        return first
    second = _pack(samples, world_size, limit, False)
    return second if int(second.loads(samples.costs, world_size).max(axis=1).sum()) < seconds else first


def _pack(samples: Samples, world_size: int, limit: int | None, whole: bool) -> Deal:
    """Micro-steps filled one after the other, from the dearest sample down.

    In each, all workers are filled to the same cost: an even share of what is left over as many micro-steps as its memory takes (a whole
    number of them; or a fraction, which leaves little for the last), and some headroom; but no less than the dearest sample's. What does
    not fit waits for the next micro-step.
    """
    rank, micro = np.zeros_like(samples.costs), np.zeros_like(samples.costs)
    left = falling(samples.costs)
    n_micro = 0
    while len(left):
        costs, tokens = samples.costs[left], samples.tokens[left]
        total, size = int(costs.sum()), int(tokens.sum())
        ceiling = UNBOUNDED
        if limit is not None and size > world_size * limit:
            even = total // (world_size * -(-size // (world_size * limit))) if whole else total * limit // size
            ceiling = max(int(costs[0]), even * HEADROOM // 8)
        placed = _fill(costs, tokens, world_size, limit, ceiling)
        here = placed >= 0
        rank[left[here]], micro[left[here]] = placed[here], n_micro
        left = left[~here]
        n_micro += 1
    return Deal(n_micro, micro, rank)


def _fill(costs: Int64s, tokens: Int64s, world_size: int, limit: int | None, ceiling: int) -> Int64s:
    """Worker of each sample, whose costs fall; -1 for samples that do not fit below the ceiling of cost and the limit of tokens."""
    load = np.zeros(world_size, np.int64)
    room = np.full(world_size, UNBOUNDED if limit is None else limit)
    mean = min(ceiling, int(costs.sum()) // world_size)
    small, tiny = np.searchsorted(-costs, [-(mean // SMALL), -(mean // TINY)])
    worker = np.full(len(costs), -1)
    _longest_first(costs[:small], tokens[:small], load, room, ceiling, worker[:small])
    for part in (slice(small, tiny), slice(tiny, None)):
        _pour(costs[part], tokens[part], load, room, ceiling, worker[part])
    return worker


def _longest_first(costs: Int64s, tokens: Int64s, load: Int64s, room: Int64s, ceiling: int, worker: Int64s) -> None:
    """Each sample to the least loaded worker that has room for it (longest processing time first, Graham 1969); fills `worker`, `load` and `room`.

    As many samples at once as go to different workers in any case: the i-th next goes to the i-th least loaded worker as long as none of those
    before it would, with what it has just got, still be below that one.
    """
    falling_to_0 = -costs
    start = 0
    while start < len(costs):
        fits = (room >= tokens[start]) & (load <= ceiling - costs[start])
        n_fitting = int(np.count_nonzero(fits))
        if not n_fitting:
            # To the next that could fit by cost; where memory is what lacks, to one that is clearly smaller.
            start = int(np.searchsorted(falling_to_0, -min(ceiling - int(load.min()), int(costs[start]) * 15 // 16)))
            continue
        by_load = rising(load) if n_fitting == len(load) else np.flatnonzero(fits)[rising(load[fits])]
        by_load = by_load[: len(costs) - start]
        before, cost, size = load[by_load], costs[start : start + len(by_load)], tokens[start : start + len(by_load)]
        after = before + cost
        sound = (after <= ceiling) & (size <= room[by_load])
        sound[1:] &= before[1:] <= np.minimum.accumulate(after)[:-1]
        n = len(sound) if sound.all() else int(np.argmin(sound))
        chosen = by_load[:n]
        load[chosen] = after[:n]
        room[chosen] -= size[:n]
        worker[start : start + n] = chosen
        start += n


def _pour(costs: Int64s, tokens: Int64s, load: Int64s, room: Int64s, ceiling: int, worker: Int64s) -> None:
    """Small samples into the gaps below one level for all workers, as water would; fills `worker`, `load` and `room`.

    The samples are laid end to end, and so are the gaps; each sample goes to the gap that its middle lies in, so a worker is off the level by
    no more than a sample.
    """
    if not len(costs):
        return
    level = min(ceiling, _level(load, int(costs.sum())))
    ends = np.maximum(level - load, 0).cumsum()
    at = np.searchsorted(2 * ends, 2 * costs.cumsum() - costs, side="right")
    inside = at < len(load)
    at = np.minimum(at, len(load) - 1)
    # Samples of one worker lie together: a running sum, less what it was where the worker's samples begin.
    running = tokens.cumsum()
    first = np.searchsorted(at, np.arange(len(load)))[at]
    inside &= running - running[first] + tokens[first] <= room[at]
    worker[inside] = at[inside]
    load += np.bincount(at[inside], costs[inside], len(load)).astype(np.int64)
    room -= np.bincount(at[inside], tokens[inside], len(load)).astype(np.int64)


def _level(load: Int64s, amount: int) -> int:
    """The level to which `amount` fills workers of these loads, rounded up."""
    ordered = np.sort(load)
    levels = -(-(ordered.cumsum() + amount) // np.arange(1, len(ordered) + 1))
    # With the n least loaded workers filled, the level is above all of theirs, and not above the next.
    return int(levels[np.flatnonzero(levels >= ordered)[-1]])


POLICIES: Mapping[Policy, Callable[[Samples, int, int | None], Deal]] = {"same": same, "slot": slot, "pack": pack}
"""Each deals samples to that many workers, none of which may hold more tokens at once than the limit, if there is one."""
