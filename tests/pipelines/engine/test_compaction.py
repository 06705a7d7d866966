"""Compaction: the rows of a table stay what they were, in few parts, whatever was written twice or killed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import storage
from pipelines.engine import tables
from pipelines.engine.compaction import compact, groups_of, join_footers
from pipelines.engine.table_index import index_table
from tests.support.killing import Killed, Killer

COSTS = {"cpu_s": 1.5, "n_inputs": 2, "steps": {"scan": [2, 1.0, 3.0]}}


def rows_of(inputs: list[int]) -> pa.Table:
    """Return two kept rows of each input."""
    uids = [f"s{i}c{clip}" for i in inputs for clip in range(2)]
    columns = {"uid": uids, "source_uid": [uid.partition("c")[0] for uid in uids], "fate": ["kept"] * len(uids)}
    return pa.table(columns).append_column("fate_step", pa.nulls(len(uids), pa.string()))


def parts_of(folder: str) -> list[str]:
    return [entry.uri for entry in storage.list_files(folder, tables.PART_SUFFIX)]


@pytest.mark.slow
@given(groups=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), min_size=2, max_size=8))
def test_every_row_is_in_the_joined_part_once(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]]
) -> None:
    """Rows that two writers did are in one part after it, where no reader could tell them apart."""
    folder = str(tmp_path_factory.mktemp("table"))
    for group in groups:
        tables.write_part(folder, rows_of(group), {"label": "cut", **COSTS})
    before = index_table(folder, "source_uid").read()
    compact(folder, "source_uid")
    (part,) = parts_of(folder)
    assert sorted(storage.read_table(part)["uid"].to_pylist()) == before["uid"].to_pylist()
    assert index_table(folder, "source_uid").read().equals(before)


def test_a_kill_at_any_point_loses_no_row(tmp_path: Path) -> None:
    for at in range(30):
        folder = str(tmp_path / str(at))
        for group in ([1, 2], [3], [4, 5], [6]):
            tables.write_part(folder, rows_of(group), {})
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            try:
                compact(folder, "source_uid")
                break
            except Killed:
                pass
        assert index_table(folder, "source_uid").read(["uid"])["uid"].to_pylist() == sorted(
            f"s{i}c{clip}" for i in range(1, 7) for clip in range(2)
        )
        compact(folder, "source_uid")
        assert len(parts_of(folder)) == 1
        assert index_table(folder, "source_uid").n_doubled == 0
    assert at > 4


def test_large_parts_stay_as_they_are() -> None:
    sizes = {"a": 40, "b": 51, "c": 50, "d": 20, "e": 90, "f": 30, "g": 60}
    groups = groups_of([storage.Entry(name, size, "1") for name, size in sizes.items()], 100)
    assert [[entry.uri for entry in group] for group in groups] == [["a", "c"], ["d", "f"]]


def test_costs_are_added() -> None:
    joined = join_footers([{"label": "cut", **COSTS}, {"label": "cut", **COSTS}, {"label": "cut"}])
    assert joined == {"label": "cut", "cpu_s": 3.0, "n_inputs": 4, "steps": {"scan": [4, 2.0, 6.0]}}
    assert join_footers([{"label": "cut"}]) == {"label": "cut"}
