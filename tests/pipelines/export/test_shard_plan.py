"""Shard plans: the sizes of shards."""

from __future__ import annotations

from pipelines.export.shard_plan import _group_by_size


def test_shards_are_no_larger_than_the_limit() -> None:
    sizes = [300_000, 300_000, 300_000, 1_500_000, 10, 10]
    rows = [{"uid": str(k), "cut_size_bytes": size} for k, size in enumerate(sizes)]
    groups = _group_by_size(rows, 10**6)
    assert [[row["uid"] for row in group] for group in groups] == [["0", "1", "2"], ["3"], ["4", "5"]]
