"""Tests of the random orders of an epoch. Weights are tested with the plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.epoch import Shuffle, permutation

pytestmark = pytest.mark.slow

GROUPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=60, unique_by=lambda one: one[1])
"""Pairs of a group and a value, with different values."""


@given(GROUPS, st.integers(0, 9))
def test_groups_stay_together_in_a_shuffle(groups: list[tuple[int, int]], seed: int) -> None:
    group_of = {value: group for group, value in groups}
    values = Shuffle(*np.array(groups, np.int64).reshape(-1, 2).T).shuffled(seed, 0, "").tolist()
    assert sorted(values) == sorted(group_of)
    assert [group_of[value] for value in values] == sorted(group_of.values())


@given(GROUPS, st.integers(0, 9))
def test_a_used_shuffle_gives_the_orders_of_a_new_one(groups: list[tuple[int, int]], seed: int) -> None:
    columns = np.array(groups, np.int64).reshape(-1, 2).T
    shuffle = Shuffle(*columns)
    for epoch in (0, 1, 0):
        assert shuffle.shuffled(seed, epoch, "").tolist() == Shuffle(*columns).shuffled(seed, epoch, "").tolist()


@given(st.integers(0, 300), st.integers(0, 9))
def test_a_permutation_has_every_number_once(count: int, seed: int) -> None:
    assert sorted(permutation(count, seed, 0, "").tolist()) == list(range(count))


def test_permutations_are_uniform() -> None:
    """24 orders of 4 numbers are equally frequent: chi-squared with 23 degrees of freedom, 99.9 % below 49.7."""
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(4800):
        order = tuple(permutation(4, 0, epoch, "").tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7
