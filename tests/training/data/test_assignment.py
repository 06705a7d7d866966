"""Tests of the common parts of assignment, against plain references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.assignment import argsort_ascending, argsort_descending

pytestmark = pytest.mark.slow


@given(st.lists(st.integers(0, 50), max_size=60))
def test_argsorts_are_those_of_a_stable_sort(values: list[int]) -> None:
    numbers = np.array(values, np.int64)
    assert argsort_ascending(numbers).tolist() == np.argsort(numbers, kind="stable").tolist()
    assert argsort_descending(numbers).tolist() == np.argsort(-numbers, kind="stable").tolist()
