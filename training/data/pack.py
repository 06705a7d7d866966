"""Assignment of packs: a rank computes any samples of the step together, as one sequence per micro-step."""

from __future__ import annotations

import numpy as np

from cluster.arrays import Int64Array
from training.data.assignment import Assignment, Workload, argsort_ascending, argsort_descending

SMALL_DIVISOR, TINY_DIVISOR = 128, 2048
"""Samples that cost less than a rank's mean load divided by these are small or tiny. Longest first would handle them
one after the other; they are assigned together by water filling instead, small ones before tiny ones."""
FILL_EIGHTHS = 9
"""Cost in eighths of an even share up to which each rank is filled: with exactly an even share, two samples of half of
it would just not fit."""
ACCEPTED_IDLE_DIVISOR = 50
"""An idle share of at most 1 / 50 ends the search for a better assignment."""
UNBOUNDED = 2**62
"""Value for no limit of cost or of tokens."""


def assign_packed(workload: Workload, world_size: int, max_tokens: int | None) -> Assignment:
    """Assign samples of any shapes to ranks, in about as few micro-steps as possible.

    No rank has more than `max_tokens` in a micro-step. If all samples fit, or with None for no limit, there is one
    micro-step. Otherwise there are two ways to fill micro-steps. The second is tried where the first leaves more than
    2% of the time idle, and the faster one is returned.
    """
    if max_tokens is None or int(workload.tokens.sum()) <= world_size * max_tokens:
        return _fill_micro_steps(workload, world_size, max_tokens, whole=True)
    first = _fill_micro_steps(workload, world_size, max_tokens, whole=True)
    first_time = _total_time(first, workload.costs, world_size)
    if (ACCEPTED_IDLE_DIVISOR - 1) * world_size * first_time <= ACCEPTED_IDLE_DIVISOR * int(workload.costs.sum()):
        return first
    second = _fill_micro_steps(workload, world_size, max_tokens, whole=False)
    return second if _total_time(second, workload.costs, world_size) < first_time else first


def _fill_micro_steps(workload: Workload, world_size: int, max_tokens: int | None, whole: bool) -> Assignment:
    """Fill micro-steps one after the other, starting with the costliest samples.

    In each micro-step all ranks are filled up to one cost: an even share of the remaining cost over the micro-steps
    that it needs by its tokens, plus one eighth, and at least the cost of the costliest sample. With `whole` the number
    of micro-steps is rounded up to an integer; without, it is a fraction, which leaves little for the last one. Samples
    that do not fit wait for the next micro-step.
    """
    ranks, micro_steps = np.zeros_like(workload.costs), np.zeros_like(workload.costs)
    remaining = argsort_descending(workload.costs)
    n_micro_steps = 0
    while len(remaining):
        costs, tokens = workload.costs[remaining], workload.tokens[remaining]
        total_cost, total_tokens = int(costs.sum()), int(tokens.sum())
        max_cost = UNBOUNDED
        if max_tokens is not None and total_tokens > world_size * max_tokens:
            n_needed = world_size * -(-total_tokens // (world_size * max_tokens))
            even = total_cost // n_needed if whole else total_cost * max_tokens // total_tokens
            max_cost = max(int(costs[0]), even * FILL_EIGHTHS // 8)
        rank_or_none = _fill_micro_step(costs, tokens, world_size, max_tokens, max_cost)
        fits = rank_or_none >= 0
        ranks[remaining[fits]], micro_steps[remaining[fits]] = rank_or_none[fits], n_micro_steps
        remaining = remaining[~fits]
        n_micro_steps += 1
    return Assignment(n_micro_steps, micro_steps, ranks)


def _total_time(assignment: Assignment, costs: Int64Array, world_size: int) -> int:
    """Return the time of all micro-steps in units of cost; each takes as long as its rank with the highest load."""
    # Sums of integers stay exact in floats up to 2 ** 53.
    n_micro_steps = assignment.n_micro_steps
    loads = np.bincount(assignment.micro_steps * world_size + assignment.ranks, costs, n_micro_steps * world_size)
    return int(loads.reshape(n_micro_steps, world_size).max(axis=1).sum())


def _fill_micro_step(
    costs: Int64Array, tokens: Int64Array, world_size: int, max_tokens: int | None, max_cost: int
) -> Int64Array:
    """Return the rank of each sample, or -1 if it fits under `max_cost` and `max_tokens` of no rank.

    Costs are descending.
    """
    load = np.zeros(world_size, np.int64)
    free_tokens = np.full(world_size, UNBOUNDED if max_tokens is None else max_tokens)
    mean = min(max_cost, int(costs.sum()) // world_size)
    small, tiny = np.searchsorted(-costs, [-(mean // SMALL_DIVISOR), -(mean // TINY_DIVISOR)])
    ranks = np.full(len(costs), -1)
    _longest_first(costs[:small], tokens[:small], load, free_tokens, max_cost, ranks[:small])
    for part in (slice(small, tiny), slice(tiny, None)):
        _water_fill(costs[part], tokens[part], load, free_tokens, max_cost, ranks[part])
    return ranks


def _longest_first(
    costs: Int64Array, tokens: Int64Array, load: Int64Array, free_tokens: Int64Array, max_cost: int, ranks: Int64Array
) -> None:
    """Assign each sample to the least loaded rank that has room for it (longest processing time first, Graham 1969).

    Updates `ranks`, `load` and `free_tokens` in place; costs are descending. As many samples as certainly go to
    different ranks are assigned together: the i-th next one goes to the i-th least loaded rank, as long as no rank
    before it, with the sample it has just got, would still be below that one.
    """
    ascending = -costs
    start = 0
    while start < len(costs):
        fits = (free_tokens >= tokens[start]) & (load <= max_cost - costs[start])
        n_fitting = int(np.count_nonzero(fits))
        if not n_fitting:
            # Skip to the next sample that could fit by cost; where tokens are the limit, to one that is clearly
            # smaller.
            start = int(np.searchsorted(ascending, -min(max_cost - int(load.min()), int(costs[start]) * 15 // 16)))
            continue
        if n_fitting == len(load):
            by_load = argsort_ascending(load)
        else:
            by_load = np.flatnonzero(fits)[argsort_ascending(load[fits])]
        by_load = by_load[: len(costs) - start]
        before, cost, size = load[by_load], costs[start : start + len(by_load)], tokens[start : start + len(by_load)]
        after = before + cost
        certain = (after <= max_cost) & (size <= free_tokens[by_load])
        certain[1:] &= before[1:] <= np.minimum.accumulate(after)[:-1]
        n = len(certain) if certain.all() else int(np.argmin(certain))
        chosen = by_load[:n]
        load[chosen] = after[:n]
        free_tokens[chosen] -= size[:n]
        ranks[start : start + n] = chosen
        start += n


def _water_fill(
    costs: Int64Array, tokens: Int64Array, load: Int64Array, free_tokens: Int64Array, max_cost: int, ranks: Int64Array
) -> None:
    """Assign small samples to the gaps between the ranks' loads and one level for all ranks (water filling).

    Updates `ranks`, `load` and `free_tokens` in place. The samples are laid end to end, and so are the gaps; each
    sample goes to the gap that its middle lies in, so a rank is off the level by less than a sample. Samples for which
    a rank has too few free tokens stay unassigned.
    """
    if not len(costs):
        return
    level = min(max_cost, _water_level(load, int(costs.sum())))
    ends = np.maximum(level - load, 0).cumsum()
    rank = np.searchsorted(2 * ends, 2 * costs.cumsum() - costs, side="right")
    fits = rank < len(load)
    rank = np.minimum(rank, len(load) - 1)
    # Samples of one rank follow each other: a running sum, minus its value where the rank's samples begin.
    running = tokens.cumsum()
    first = np.searchsorted(rank, np.arange(len(load)))[rank]
    fits &= running - running[first] + tokens[first] <= free_tokens[rank]
    ranks[fits] = rank[fits]
    load += np.bincount(rank[fits], costs[fits], len(load)).astype(np.int64)
    free_tokens -= np.bincount(rank[fits], tokens[fits], len(load)).astype(np.int64)


def _water_level(load: Int64Array, amount: int) -> int:
    """Return the level to which `amount` fills ranks of these loads, rounded up."""
    ascending = np.sort(load)
    levels = -(-(ascending.cumsum() + amount) // np.arange(1, len(ascending) + 1))
    # With the n least loaded ranks filled, the level is above all of their loads, and not above the next one.
    return int(levels[np.flatnonzero(levels >= ascending)[-1]])
