"""Dealing: against plain references, and never far from the best that is possible."""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.data import pack as packing
from training.data import slot as slots
from training.data.assignment import Deal, Samples
from training.data.order import Shuffle, falling, permutation, rising
from training.data.pack import pack
from training.data.policies import same
from training.data.slot import slot
from training.models.dit import DiT


def samples_of(sizes: list[int], costs: list[int] | None = None) -> Samples:
    """Samples of so many tokens, those of one size in one bucket; costs grow as a transformer's do, where they are not given."""
    tokens = np.array(sizes)
    found, first, buckets = np.unique(tokens, return_index=True, return_inverse=True)
    by_bucket = np.array(costs)[first] if costs else found * (64 + found)
    return Samples(2 * buckets, *(np.stack((column, column), axis=1) for column in (by_bucket, found)))


def idle(costs: NDArray[np.int64], found: Deal, world_size: int) -> float:
    loads = found.loads(costs, world_size)
    return 1 - float(loads.sum() / (world_size * loads.max(axis=1).sum()))


def lpt(costs: list[int], world_size: int) -> list[int]:
    """Loads by longest processing time first, one sample after the other."""
    heap = [(0, rank) for rank in range(world_size)]
    for cost in sorted(costs, reverse=True):
        load, rank = heapq.heappop(heap)
        heapq.heappush(heap, (load + cost, rank))
    return sorted(load for load, _ in heap)


SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@settings(max_examples=300)
@given(SIZES, st.integers(1, 9))
def test_dealing_many_at_once_is_dealing_one_after_the_other(sizes: list[int], world_size: int) -> None:
    samples = samples_of(sizes)
    order = falling(samples.costs)
    load, room, worker = np.zeros(world_size, np.int64), np.full(world_size, 2**40), np.full(len(sizes), -1)
    packing._longest_first(samples.costs[order], samples.tokens[order], load, room, packing.UNBOUNDED, worker)
    assert sorted(load.tolist()) == lpt(samples.costs.tolist(), world_size)
    assert np.bincount(worker, samples.costs[order], world_size).tolist() == load.tolist()


@given(SIZES, st.lists(st.integers(0, 3000), min_size=1, max_size=9))
def test_pouring_levels_workers_within_a_sample(sizes: list[int], loads: list[int]) -> None:
    sizes = sorted(sizes, reverse=True)
    costs, load = np.array(sizes), np.array(loads)
    room, worker = np.full(len(loads), 10**6), np.full(len(sizes), -1)
    packing._pour(costs, costs, load, room, packing.UNBOUNDED, worker)
    assert (worker >= 0).all()
    assert load.tolist() == (np.array(loads) + np.bincount(worker, costs, len(loads))).tolist()
    level = next(level for level in itertools.count() if sum(max(0, level - one) for one in loads) >= sum(sizes))
    poured = load > np.array(loads)
    assert (load[poured] <= level + max(sizes)).all()
    assert (load >= level - 2 * max(sizes)).all()


@given(SIZES, st.integers(1, 5), st.integers(300, 2000))
def test_packing_keeps_the_limit_and_wastes_few_micro_steps(sizes: list[int], world_size: int, limit: int) -> None:
    samples = samples_of(sizes)
    found = pack(samples, world_size, limit)
    held = np.zeros((found.n_micro, world_size), np.int64)
    np.add.at(held, (found.micro, found.rank), samples.tokens)
    assert held.max() <= limit
    assert (held.sum(axis=1) > 0).all()
    # With samples of up to the limit, memory may be left half empty; a share below the dearest sample's cost may take one more.
    assert found.n_micro <= 2 * -(-sum(sizes) // (world_size * limit)) + 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_packing_is_near_the_best_possible(world_size: int) -> None:
    """All ways to deal 7 samples are tried; longest first is at most 4/3 - 1/(3m) of the best (Graham 1969)."""
    chance = np.random.default_rng(world_size)
    for _ in range(10):
        samples = samples_of(chance.integers(1, 200, 7).tolist())
        best = min(
            np.bincount(np.array(ranks), samples.costs, world_size).max()
            for ranks in itertools.product(range(world_size), repeat=len(samples.costs))
        )
        found = pack(samples, world_size, None)
        assert found.n_micro == 1
        assert found.loads(samples.costs, world_size).max() <= best * (4 / 3 - 1 / (3 * world_size)) + 1


MIX = np.array([64, 256, 1024, 2304, 4000, 9000, 20000, 38000, 76000])


@pytest.mark.parametrize("world_size", [1, 8, 64])
@pytest.mark.parametrize(
    ("per_worker", "limit", "bound"), [(20, None, 0.03), (20, 600_000, 0.03), (40, 300_000, 0.03), (40, 152_000, 0.06)]
)
def test_packing_a_wide_mix_leaves_little_idle(
    world_size: int, per_worker: int, limit: int | None, bound: float
) -> None:
    chance = np.random.default_rng(0)
    sizes = chance.choice(MIX, per_worker * world_size)
    model = DiT(preset="XL")
    text = chance.integers(1, 300, len(sizes))
    samples = samples_of(sizes.tolist(), [model.flops(size, round(text.mean())) // 10**6 for size in sizes.tolist()])
    found = pack(samples, world_size, limit)
    # Texts differ in length, and dealing knows their mean only.
    costs = np.array([model.flops(*counts) // 10**6 for counts in zip(sizes.tolist(), text.tolist(), strict=True)])
    assert idle(costs, found, world_size) <= bound


SLOTS = {1: 1, 5: 2, 20: 7, 70: 12}
"""Tokens of a sample of each bucket, and of its last picture."""


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(list(SLOTS)), st.booleans()), min_size=1, max_size=80),
    st.integers(1, 9),
    st.none() | st.integers(82, 400),
)
def test_slots_hold_one_bucket_a_worker_and_fill_up_from_the_dearest(
    of: list[tuple[int, bool]], world_size: int, limit: int | None
) -> None:
    tokens_B2 = np.array([(size, size + tail) for size, tail in SLOTS.items()])
    kinds = np.array([2 * list(SLOTS).index(size) + tail for size, tail in of])
    samples = Samples(kinds, tokens_B2 * (64 + tokens_B2), tokens_B2)
    found = slot(samples, world_size, limit)
    shares = [found.of(rank) for rank in range(world_size)]
    assert {len(share) for share in shares} == {found.n_micro}
    # From the first micro-step's first worker to the last one's last.
    batches = [places for micro in zip(*shares, strict=True) for places in micro]
    assert sorted(itertools.chain.from_iterable(places.tolist() for places in batches)) == list(range(len(of)))
    loads = found.loads(samples.costs, world_size)
    assert loads.ravel().tolist() == [samples.costs[places].sum() for places in batches]
    assert (np.diff(loads.ravel()) <= 0).all(), "so empty places are in the last micro-step only"
    assert (loads[:, 0] > 0).all()
    counts: dict[int, list[tuple[int, int]]] = {}
    for places in batches:
        assert (np.diff(places) > 0).all()
        assert limit is None or samples.tokens[places].sum() <= limit
        if len(places):
            (bucket,) = set((kinds[places] // 2).tolist())
            counts.setdefault(bucket, []).append((len(places), int((kinds[places] % 2).sum())))
    for alike in counts.values():
        assert all(max(column) - min(column) <= 1 for column in zip(*alike, strict=True)), (
            "samples are dealt in turn, and last pictures too"
        )


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 2**30), st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=40),
    st.integers(1, 600),
)
def test_the_ceiling_is_the_best_of_all_tried_one_by_one_in_whole_numbers(
    buckets: list[tuple[int, int, int]], world_size: int
) -> None:
    cost, counts, fewest = (
        np.array(column) for column in zip(*((one, count, min(few, count)) for one, count, few in buckets), strict=True)
    )

    def seconds(n_batches: list[int]) -> int:
        dearest = sorted(
            itertools.chain.from_iterable(
                [int(one) * -(-int(count) // n)] * n
                for one, count, n in zip(cost.tolist(), counts.tolist(), n_batches, strict=True)
            )
        )
        return sum(dearest[::-1][::world_size])

    tried = [
        [
            max(few, -(-count // max(1, int(cost.max()) * ceiling // 64 // one)))
            for one, count, few in zip(cost.tolist(), counts.tolist(), fewest.tolist(), strict=True)
        ]
        for ceiling in slots.CEILINGS.tolist()
    ]
    assert slots._fewest_seconds(cost, counts, fewest, world_size).tolist() == min(tried, key=seconds)


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(0, 40), st.lists(st.booleans(), min_size=1, max_size=50)),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_no_fewer_micro_batches_would_fit(buckets: list[tuple[int, int, list[bool]]], data: st.DataObject) -> None:
    """Found one by one, by dealing each bucket's samples in turn, those with a last picture first."""
    dealt = [sorted((size + tail * given for given in pictures), reverse=True) for size, tail, pictures in buckets]
    limit = data.draw(st.integers(max(sizes[0] for sizes in dealt), 300))
    tokens = np.array([(size, size + tail) for size, tail, _ in buckets])
    counts = np.array([(pictures.count(False), pictures.count(True)) for _, _, pictures in buckets])
    found = slots._fewest_that_fit(tokens, counts, limit).tolist()
    for sizes, fewest in zip(dealt, found, strict=True):
        fit = [max(sum(sizes[turn::n]) for turn in range(n)) <= limit for n in range(1, len(sizes) + 1)]
        assert fit == [n >= fewest for n in range(1, len(sizes) + 1)]


def test_slots_of_equal_cost_are_found() -> None:
    """4 dear samples, and 12 of a quarter of their cost: two workers need two micro-steps of 2, or one of all; not one is idle."""
    samples = samples_of([40] * 4 + [10] * 16, [400] * 4 + [100] * 16)
    for world_size in (1, 2, 4, 8):
        assert idle(samples.costs, slot(samples, world_size, 80), world_size) == 0


@given(st.integers(1, 100), st.integers(1, 9), st.integers(10, 100))
def test_same_deals_equal_numbers(count: int, world_size: int, limit: int) -> None:
    samples = samples_of([10] * count)
    found = same(samples, world_size, limit)
    held = np.zeros((found.n_micro, world_size), np.int64)
    np.add.at(held, (found.micro, found.rank), 1)
    assert held.max() <= limit // 10
    assert held.sum(axis=0).max() - held.sum(axis=0).min() <= 1
    assert found.n_micro == -(-int(held.sum(axis=0).max()) // (limit // 10))


@given(st.lists(st.integers(0, 50), max_size=60))
def test_orders_are_those_of_a_stable_sort(values: list[int]) -> None:
    numbers = np.array(values, np.int64)
    assert rising(numbers).tolist() == np.argsort(numbers, kind="stable").tolist()
    assert falling(numbers).tolist() == np.argsort(-numbers, kind="stable").tolist()


GROUPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=60, unique_by=lambda one: one[1])


@given(GROUPS, st.integers(0, 9))
def test_groups_stay_together_when_they_are_shuffled(groups: list[tuple[int, int]], seed: int) -> None:
    group_of = {value: group for group, value in groups}
    order = Shuffle(*np.array(groups, np.int64).reshape(-1, 2).T).order(seed, 0, "").tolist()
    assert sorted(order) == sorted(group_of)
    assert [group_of[value] for value in order] == sorted(group_of.values())


@given(GROUPS, st.integers(0, 9))
def test_a_shuffle_gives_the_same_orders_again_and_again(groups: list[tuple[int, int]], seed: int) -> None:
    columns = np.array(groups, np.int64).reshape(-1, 2).T
    shuffle = Shuffle(*columns)
    for epoch in (0, 1, 0):
        assert shuffle.order(seed, epoch, "").tolist() == Shuffle(*columns).order(seed, epoch, "").tolist()


@given(st.integers(0, 300), st.integers(0, 9))
def test_permutations_hold_everything_once(count: int, seed: int) -> None:
    assert sorted(permutation(count, seed, 0, "").tolist()) == list(range(count))


def test_permutations_are_uniform() -> None:
    """24 orders of 4 things equally often: chi-squared with 23 degrees of freedom, 99.9 % below 49.7."""
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(4800):
        order = tuple(permutation(4, 0, epoch, "").tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7
