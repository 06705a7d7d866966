"""Tests of micro-batches of one bucket, against searches one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.workloads import idle_share, workload_of
from training.data import bucketed
from training.data.assignment import Workload
from training.data.bucketed import assign_bucketed

pytestmark = pytest.mark.slow

BUCKETS = {1: 1, 5: 2, 20: 7, 70: 12}
"""Tokens of a sample of each bucket, and of its last-frame latent."""


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(list(BUCKETS)), st.booleans()), min_size=1, max_size=80),
    st.integers(1, 9),
    st.none() | st.integers(82, 400),
)
def test_micro_batches_have_one_bucket_and_descend_in_cost(
    samples: list[tuple[int, bool]], world_size: int, max_tokens: int | None
) -> None:
    tokens_B2 = np.array([(size, size + last_frame) for size, last_frame in BUCKETS.items()])
    shape_ids = np.array([2 * list(BUCKETS).index(size) + last_frame for size, last_frame in samples])
    workload = Workload(shape_ids, tokens_B2 * (64 + tokens_B2), tokens_B2)
    found = assign_bucketed(workload, world_size, max_tokens)
    by_rank = [found.sample_indices(rank) for rank in range(world_size)]
    assert {len(batches) for batches in by_rank} == {found.n_micro_steps}
    # From the first rank of the first micro-step to the last rank of the last one.
    batches = [indices for micro_step in zip(*by_rank, strict=True) for indices in micro_step]
    assert sorted(itertools.chain.from_iterable(indices.tolist() for indices in batches)) == list(range(len(samples)))
    loads = found.loads(workload.costs, world_size)
    assert loads.ravel().tolist() == [workload.costs[indices].sum() for indices in batches]
    assert (np.diff(loads.ravel()) <= 0).all(), "so only the last micro-step has empty micro-batches"
    assert (loads[:, 0] > 0).all()
    counts: dict[int, list[tuple[int, int]]] = {}
    for indices in batches:
        assert (np.diff(indices) > 0).all()
        assert max_tokens is None or workload.tokens[indices].sum() <= max_tokens
        if len(indices):
            (bucket,) = set((shape_ids[indices] // 2).tolist())
            counts.setdefault(bucket, []).append((len(indices), int((shape_ids[indices] % 2).sum())))
    for of_bucket in counts.values():
        for column in zip(*of_bucket, strict=True):
            assert max(column) - min(column) <= 1, "samples go in turn, and those with last-frame latents too"


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 2**30), st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=40),
    st.integers(1, 600),
)
def test_the_best_ceiling_is_that_of_a_search_one_by_one(buckets: list[tuple[int, int, int]], world_size: int) -> None:
    limited = ((cost, count, min(min_batches, count)) for cost, count, min_batches in buckets)
    costs, counts, min_batches = (np.array(column) for column in zip(*limited, strict=True))

    def time_of(n_batches: list[int]) -> int:
        ascending = sorted(
            itertools.chain.from_iterable(
                [int(cost) * -(-int(count) // n)] * n
                for cost, count, n in zip(costs.tolist(), counts.tolist(), n_batches, strict=True)
            )
        )
        return sum(ascending[::-1][::world_size])

    tried = [
        [
            max(fewest, -(-count // max(1, int(costs.max()) * ceiling // 64 // cost)))
            for cost, count, fewest in zip(costs.tolist(), counts.tolist(), min_batches.tolist(), strict=True)
        ]
        for ceiling in bucketed.CEILINGS_64THS
    ]
    found = bucketed._fastest_batches(costs, counts, min_batches, world_size)
    assert found.tolist() == min(tried, key=time_of)


def test_micro_batches_of_equal_cost_are_found() -> None:
    """4 samples and 16 of a quarter of their cost: two ranks need two micro-steps of 2, or one of all; none is idle."""
    workload = workload_of([40] * 4 + [10] * 16, [400] * 4 + [100] * 16)
    for world_size in (1, 2, 4, 8):
        assert idle_share(workload.costs, assign_bucketed(workload, world_size, 80), world_size) == 0
