"""Removal lists are read as they were written."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pipelines.engine.exclusions import Span
from pipelines.forgetting.removal_list import RemovalList


@pytest.mark.parametrize("span", [None, Span(Fraction(1, 3), Fraction(5))])
def test_a_list_is_read_as_it_was_written(span: Span | None) -> None:
    stored = RemovalList(
        "/in/a.mp4",
        span,
        uids=frozenset({"u1", "u2"}),
        sidecars=frozenset({"/in/a.txt"}),
        captions=frozenset({"a ball"}),
        text_keys=frozenset({"k"}),
        payloads=frozenset({"d"}),
        row_counts={"scan-0": 1},
    )
    assert RemovalList.from_json(stored.to_json()) == stored


def test_merging_keeps_all_names_and_the_larger_counts() -> None:
    first = RemovalList("/in/a.mp4", None, uids=frozenset({"u1"}), row_counts={"scan-0": 1, "cut-0": 7})
    second = RemovalList("/in/a.mp4", None, uids=frozenset({"u2"}), row_counts={"cut-0": 2, "pick-0": 4})
    merged = first.merge(second)
    assert merged.uids == {"u1", "u2"}
    assert merged.row_counts == {"scan-0": 1, "cut-0": 7, "pick-0": 4}
