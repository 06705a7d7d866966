"""Selection of the rows of the page."""

from __future__ import annotations

from pipelines.report.row_selection import interleave


def test_lists_are_interleaved() -> None:
    assert interleave([[("a", 1), ("a", 2)], [("b", 1)]]) == [("a", 1), ("b", 1), ("a", 2)]
