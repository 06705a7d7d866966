"""Who computes what: the samples of a step dealt to workers and micro-steps, balanced by cost.

All workers wait for the dearest one in each micro-step, since ZeRO's collectives need all of them. So balance is wanted between the
workers of a micro-step; micro-steps may differ from each other. Three policies, by name: `same`, `slot` and `pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

Policy = Literal["same", "slot", "pack"]

SMALL = 1 / 32
"""Of a worker's mean share of a micro-step: cheaper samples are poured over the workers instead of being dealt one after the other."""
TINY = 1 / 512
"""Poured last, to level what pouring the small ones left uneven."""
CEILINGS = 2.0 ** np.linspace(-2, 2, 33)
"""Costs of a micro-batch that `slot` tries, beside the dearest sample."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What is dealt: the samples of one step."""

    costs: Float64s
    """In any unit; all above 0."""
    tokens: Int64s
    shapes: Int64s
    """Number of each sample's bucket."""

    def __len__(self) -> int:
        return len(self.costs)


@dataclass(frozen=True, eq=False)
class Deal:
    """Where each sample of a step goes; a worker may have none in a micro-step."""

    n_micro: int
    """Micro-steps of every worker."""
    micro: Int64s
    rank: Int64s

    def idle_share(self, costs: Float64s, world_size: int) -> float:
        """Share of the workers' time spent waiting for the dearest of each micro-step: 1 - sum / (workers * sum of the micro-steps' maxima)."""
        loads = np.bincount(self.micro * world_size + self.rank, costs, self.n_micro * world_size).reshape(self.n_micro, world_size)
        return 1 - float(loads.sum() / (world_size * loads.max(axis=1).sum()))


def same(samples: Samples, world_size: int, limit: int | None) -> Deal:
    """Samples of one bucket, in equal numbers (but for one)."""
    assert (samples.shapes == samples.shapes[0]).all()
    place = np.arange(len(samples))
    share = -(-len(samples) // world_size)
    n_micro = 1 if limit is None else -(-share // (limit // int(samples.tokens[0])))
    return Deal(n_micro, place // world_size % n_micro, place % world_size)


def slot(samples: Samples, world_size: int, limit: int | None) -> Deal:
    """Micro-batches of one bucket each, of about equal cost within a micro-step.

    Each bucket's samples are split evenly into micro-batches below a ceiling of cost; these are sorted by cost and each next
    `world_size` of them are a micro-step. Of a few ceilings the one is taken whose micro-steps take the least time.
    """
    order = np.lexsort((-samples.costs, samples.shapes))
    _, first, counts = np.unique(samples.shapes[order], return_index=True, return_counts=True)
    cost = np.add.reduceat(samples.costs[order], first) / counts
    most = counts if limit is None else np.minimum(counts, limit // samples.tokens[order][first])
    ceilings = cost.max() * CEILINGS[:, None]
    n_batches = -(-counts // np.clip((ceilings / cost).astype(np.int64), 1, most))
    dearest = cost * -(-counts // n_batches)
    by_cost = np.argsort(-dearest, axis=1)
    ends = np.take_along_axis(n_batches, by_cost, axis=1).cumsum(axis=1)
    # A micro-step takes as long as its first micro-batch, and those at multiples of `world_size` are first.
    n_first = np.diff(-(-ends // world_size), axis=1, prepend=0)
    best = int(np.argmin((n_first * np.take_along_axis(dearest, by_cost, axis=1)).sum(axis=1)))
    # Within a bucket, dear and cheap samples (those of long and short texts) go to its micro-batches in turn.
    n_batches = n_batches[best]
    turn = (np.arange(len(order)) - np.repeat(first, counts)) % np.repeat(n_batches, counts)
    batch = np.repeat(n_batches.cumsum() - n_batches, counts) + turn
    load = np.bincount(batch, samples.costs[order])
    place = np.empty(len(load), np.int64)
    place[np.argsort(-load, kind="stable")] = np.arange(len(load))
    where = np.empty(len(order), np.int64)
    where[order] = place[batch]
    return Deal(-(-len(load) // world_size), where // world_size, where % world_size)


def pack(samples: Samples, world_size: int, limit: int | None) -> Deal:
    """Several samples of any shapes a worker and micro-step, in as few micro-steps as the limit of tokens allows.

    Micro-steps are filled one after the other from the dearest sample down. A micro-step's workers are filled up to its dearest sample, or to
    an equal share of what is left where that is more; what does not fit waits for the next micro-step, and the last one takes all.
    """
    rank, micro = np.zeros(len(samples), np.int64), np.zeros(len(samples), np.int64)
    left = np.argsort(-samples.costs, kind="stable")
    n_micro = 0
    while len(left):
        costs, tokens = samples.costs[left], samples.tokens[left]
        n_left = 1 if limit is None else -(-int(tokens.sum()) // (world_size * limit))
        placed = _fill(costs, tokens, world_size, limit, None) if n_left == 1 else np.full(len(left), -1)
        if (placed < 0).any():
            mean = costs.sum() / (world_size * max(2, n_left))
            placed = _fill(costs, tokens, world_size, limit, max(mean, float(costs[0])))
        here = placed >= 0
        rank[left[here]], micro[left[here]] = placed[here], n_micro
        left = left[~here]
        n_micro += 1
    return Deal(n_micro, micro, rank)


def _fill(costs: Float64s, tokens: Int64s, world_size: int, limit: int | None, ceiling: float | None) -> Int64s:
    """Worker of each sample, whose costs fall; -1 for samples that do not fit below the ceiling of cost and the limit of tokens."""
    load = np.zeros(world_size)
    room = np.full(world_size, np.iinfo(np.int64).max if limit is None else limit)
    top = np.inf if ceiling is None else ceiling
    mean = costs.sum() / world_size if ceiling is None else ceiling
    small, tiny = (int(np.searchsorted(-costs, -mean * share, side="right")) for share in (SMALL, TINY))
    worker = np.full(len(costs), -1)
    # Without a cost of its own, the dearest `world_size` samples always fit.
    _longest_first(costs[:small], tokens[:small], load, room, top, worker[:small])
    for start, stop in ((small, tiny), (tiny, len(costs))):
        _pour(costs[start:stop], tokens[start:stop], load, room, top, worker[start:stop])
    return worker


def _longest_first(costs: Float64s, tokens: Int64s, load: Float64s, room: Int64s, top: float, worker: Int64s) -> None:
    """Each sample to the least loaded worker that has room for it (longest processing time first, Graham 1969); fills `worker`, `load` and `room`.

    As many samples at once as go to different workers in any case: the i-th next goes to the i-th least loaded worker as long as none of those
    before it would, with what it has just got, still be below that one.
    """
    start = 0
    while start < len(costs):
        fits = (room >= tokens[start]) & (load + costs[start] <= top * (1 + 1e-9))
        n_fitting = int(fits.sum())
        if not n_fitting:
            # The next one that is of another size: costs of one size differ by their texts.
            start += int(np.argmax(np.append((tokens[start:] < tokens[start]) | (costs[start:] < 0.95 * costs[start]), True)))
            continue
        by_load = np.argsort(np.where(fits, load, np.inf), kind="stable")[: min(n_fitting, len(costs) - start)]
        before, cost, size = load[by_load], costs[start : start + len(by_load)], tokens[start : start + len(by_load)]
        after = before + cost
        sound = (after <= top * (1 + 1e-9)) & (size <= room[by_load])
        sound[1:] &= before[1:] <= np.minimum.accumulate(after)[:-1]
        n = len(sound) if sound.all() else int(np.argmin(sound))
        chosen = by_load[:n]
        load[chosen] = after[:n]
        room[chosen] -= size[:n]
        worker[start : start + n] = chosen
        start += n


def _pour(costs: Float64s, tokens: Int64s, load: Float64s, room: Int64s, top: float, worker: Int64s) -> None:
    """Small samples into the gaps below one level for all workers, as water would; fills `worker`, `load` and `room`.

    The samples are laid end to end, and so are the gaps; each sample goes to the gap that its middle lies in, so a worker is off the level by
    no more than a sample.
    """
    if not len(costs):
        return
    level = min(top, _level(load, float(costs.sum())))
    ends = np.maximum(level - load, 0).cumsum()
    middle = costs.cumsum() - costs / 2
    # Rounding may put the last sample behind the last gap.
    at = np.searchsorted(ends * (1 + 1e-9), middle, side="right")
    inside = at < len(load)
    at = np.minimum(at, len(load) - 1)
    # Samples of one worker lie together: a running sum, less what it was where the worker's samples begin.
    running = tokens.cumsum()
    first = np.searchsorted(at, at, side="left")
    inside &= running - running[first] + tokens[first] <= room[at]
    worker[inside] = at[inside]
    load += np.bincount(at[inside], costs[inside], len(load))
    room -= np.bincount(at[inside], tokens[inside], len(load)).astype(np.int64)


def _level(load: Float64s, amount: float) -> float:
    """The level to which `amount` fills workers of these loads."""
    ordered = np.sort(load)
    n = np.arange(1, len(ordered) + 1)
    levels = (ordered.cumsum() + amount) / n
    # With the n least loaded workers filled, the level is above all of theirs, and not above the next.
    return float(levels[int(np.flatnonzero(levels >= ordered)[-1])])


POLICIES: Mapping[Policy, Callable[[Samples, int, int | None], Deal]] = {"same": same, "slot": slot, "pack": pack}
"""Each deals samples to that many workers, none of which may hold more tokens at once than the limit, if there is one."""
