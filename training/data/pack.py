"""Dealing any samples of a step to be computed together, as one sequence a worker and micro-step."""

from __future__ import annotations

import numpy as np

from training.data.deal import Int64s, Samples, Table
from training.data.order import falling, rising

SMALL, TINY = 128, 2048
"""Samples cheaper than a worker's mean share over this are poured over the workers instead of being dealt one after the other; tiny ones last."""
HEADROOM = 9
"""Eighths of an even share that a worker is filled to: at exactly an even share, samples of half of it just do not fit twice."""
GOOD_IDLE = 50
"""An idle share of one part in so many is good enough to look no further."""
UNBOUNDED = 2**62


def pack(samples: Samples, world_size: int, limit: int | None) -> Table:
    """Several samples of any shapes a worker and micro-step, in about as few micro-steps as the limit of tokens allows.

    With room for all at once this is one micro-step. Otherwise there are two ways of dividing the samples; the second is tried where the first
    leaves workers idle, and the better one is taken.
    """
    if limit is None or int(samples.tokens.sum()) <= world_size * limit:
        return _pack(samples, world_size, limit, True)
    first = _pack(samples, world_size, limit, True)
    seconds = _seconds(first, samples.costs, world_size)
    if (GOOD_IDLE - 1) * world_size * seconds <= GOOD_IDLE * int(samples.costs.sum()):
        return first
    second = _pack(samples, world_size, limit, False)
    return second if _seconds(second, samples.costs, world_size) < seconds else first


def _pack(samples: Samples, world_size: int, limit: int | None, whole: bool) -> Table:
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
    return Table(n_micro, micro, rank)


def _seconds(deal: Table, costs: Int64s, world_size: int) -> int:
    """Time that the micro-steps take, each as long as its dearest worker, in units of cost."""
    # Sums of whole numbers stay exact in floats up to 2 ** 53.
    loads = np.bincount(deal.micro * world_size + deal.rank, costs, deal.n_micro * world_size)
    return int(loads.reshape(deal.n_micro, world_size).max(axis=1).sum())


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
