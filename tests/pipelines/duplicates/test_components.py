"""Connected components, against a walk from node to node."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.duplicates.components import components


@pytest.mark.slow
@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_components_equal_those_of_a_walk(pairs: list[tuple[int, int]]) -> None:
    found = components(10, pairs)
    for start in range(10):
        reached, todo = {start}, [start]
        while todo:
            at = todo.pop()
            new = {b for a, b in pairs if a == at} | {a for a, b in pairs if b == at}
            todo += sorted(new - reached)
            reached |= new
        assert found[start] == min(reached)
