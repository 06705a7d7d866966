"""Tests of the common parts of assignment and of the policy `same`, against plain references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.workloads import workload_of
from training.data.assignment import argsort_ascending, argsort_descending, assign_same

pytestmark = pytest.mark.slow


@given(st.integers(1, 100), st.integers(1, 9), st.integers(10, 100))
def test_same_assigns_equal_numbers_of_samples(count: int, world_size: int, max_tokens: int) -> None:
    workload = workload_of([10] * count)
    found = assign_same(workload, world_size, max_tokens)
    counts = np.zeros((found.n_micro_steps, world_size), np.int64)
    np.add.at(counts, (found.micro_steps, found.ranks), 1)
    assert counts.max() <= max_tokens // 10
    assert counts.sum(axis=0).max() - counts.sum(axis=0).min() <= 1
    assert found.n_micro_steps == -(-int(counts.sum(axis=0).max()) // (max_tokens // 10))


@given(st.lists(st.integers(0, 50), max_size=60))
def test_argsorts_are_those_of_a_stable_sort(values: list[int]) -> None:
    numbers = np.array(values, np.int64)
    assert argsort_ascending(numbers).tolist() == np.argsort(numbers, kind="stable").tolist()
    assert argsort_descending(numbers).tolist() == np.argsort(-numbers, kind="stable").tolist()
