"""The rows with the smallest keys, of a table in parts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.batches import Batch, SmallestRows


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 10**6)), min_size=1, max_size=60, unique_by=lambda item: item[1]
    ),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_smallest_rows_are_those_of_a_sort(items: list[tuple[int, int]], size: int, n_parts: int) -> None:
    smallest = SmallestRows(size)
    uid_of = {}
    for number in range(n_parts):
        part = items[number::n_parts]
        table = pa.table({"uid": pa.array([f"{uid:07d}" for _, uid in part], pa.string())})
        batch = Batch(f"part-{number}", table)
        uid_of.update({(batch.part, uid): uid for uid in batch.uids.tolist()})
        keys_N = np.array([key for key, _ in part], np.float64)
        smallest.add(batch, np.ones(len(part), np.bool_), keys_N)
    expected = [f"{uid:07d}" for _, uid in sorted(items)[:size]]
    assert [uid_of[ref] for ref in smallest.refs] == expected
