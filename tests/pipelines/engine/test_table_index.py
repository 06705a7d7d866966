"""The index of a table: one place per input row whoever wrote it, and one file that stands for all parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import part_index, storage
from cluster.part_index import FILE
from pipelines.engine import tables
from pipelines.engine.step import RunError
from pipelines.engine.table_index import (
    fates_of_table,
    index_table,
    repair,
    store_index,
)


def rows_of(inputs: Sequence[int], clips: int = 1) -> pa.Table:
    """Return kept rows of these inputs, `clips` of each."""
    uids = [(f"s{i}c{clip}", f"s{i}") for i in inputs for clip in range(clips)]
    columns = {"uid": [uid for uid, _ in uids], "source_uid": [source for _, source in uids]}
    return pa.table(columns | {"fate": ["kept"] * len(uids), "fate_step": pa.nulls(len(uids), pa.string())})


class Opened:
    """Counts the files that are opened for reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        open_input = storage.open_input

        def counted(uri: str) -> object:
            self.names.append(uri.rpartition("/")[2])
            return open_input(uri)

        monkeypatch.setattr(storage, "open_input", counted)

    def take(self) -> list[str]:
        names, self.names = self.names, []
        return names


@pytest.mark.slow
@given(
    groups=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), min_size=1, max_size=8),
    clips=st.integers(1, 3),
)
def test_rows_of_two_writers_count_once(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]], clips: int
) -> None:
    """However inputs were grouped into tasks, and by however many writers, each has its rows once."""
    folder = str(tmp_path_factory.mktemp("table"))
    for group in groups:
        tables.write_part(folder, rows_of(group, clips), {})
    wanted = sorted({f"s{i}c{clip}" for group in groups for i in group for clip in range(clips)})
    index = index_table(folder, "source_uid")
    assert sorted(index.uids.to_pylist()) == wanted
    assert index.read(["uid"])["uid"].to_pylist() == wanted
    before = sorted(index.rows.to_pylist(), key=str)
    assert repair(folder, "source_uid") == index.n_doubled
    after = index_table(folder, "source_uid")
    assert after.n_doubled == 0
    assert sorted(after.rows.to_pylist(), key=str) == before, "the rows that counted are those that stay"
    assert repair(folder, "source_uid") == 0


def test_all_clips_of_an_input_come_from_one_part(tmp_path: Path) -> None:
    parts = sorted(tables.write_part(str(tmp_path), rows_of(group, 3), {}) for group in ([1, 2], [2, 3]))
    index = index_table(str(tmp_path), "source_uid")
    assert {row["part"] for row in index.rows.to_pylist() if row["input_uid"] == "s2"} == {parts[0]}


def test_stored_index_stands_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)
    for i in range(30):
        tables.write_part(folder, rows_of([i], 2), {})
    opened = Opened(monkeypatch)
    whole = index_table(folder, "source_uid")
    assert (len(opened.take()), whole.is_stored) == (30, False)
    store_index(folder, "source_uid")
    opened.take()
    again = index_table(folder, "source_uid")
    assert (opened.take(), again.is_stored) == ([FILE], True)
    assert again.rows.equals(whole.rows)
    assert fates_of_table(folder).equals(whole.rows.drop_columns(["input_uid"]))
    assert opened.take() == [FILE]


def test_parts_that_changed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)
    parts = [tables.write_part(folder, rows_of([i, i + 10]), {}) for i in range(5)]
    store_index(folder, "source_uid")
    tables.remove_rows(parts[0], pa.array(["s0c0"]))
    storage.remove(parts[1])
    new = tables.write_part(folder, rows_of([20]), {})
    opened = Opened(monkeypatch)
    index = index_table(folder, "source_uid")
    assert sorted(opened.take()) == sorted([FILE, parts[0].rpartition("/")[2], new.rpartition("/")[2]])
    assert sorted(index.uids.to_pylist()) == sorted(
        ["s10c0", "s20c0", *(f"s{i}c0" for i in (2, 3, 4)), *(f"s{i}c0" for i in (12, 13, 14))]
    )


def test_part_of_the_same_size_and_another_time_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)
    parts = [tables.write_part(folder, rows_of([i]), {}) for i in range(3)]
    store_index(folder, "source_uid")
    os.utime(parts[2], ns=(1, 1))
    opened = Opened(monkeypatch)
    index_table(folder, "source_uid")
    assert parts[2].rpartition("/")[2] in opened.take()


def test_index_that_cannot_be_read_is_not_needed(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for i in range(3):
        tables.write_part(folder, rows_of([i]), {})
    store_index(folder, "source_uid")
    whole = index_table(folder, "source_uid").rows
    data = (tmp_path / FILE).read_bytes()
    for damaged in (b"", b"nothing", data[:100], data[: len(data) // 2]):
        (tmp_path / FILE).write_bytes(damaged)
        assert index_table(folder, "source_uid").rows.equals(whole)


def test_index_of_another_input_column_is_not_used(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for i in range(3):
        tables.write_part(folder, rows_of([i]), {})
    store_index(folder, "source_uid")
    assert index_table(folder, "uid").rows["input_uid"].to_pylist() == index_table(folder, "uid").uids.to_pylist()


def test_stored_indexes_are_removed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(2):
            tables.write_part(str(tmp_path / name), rows_of([i]), {})
        store_index(str(tmp_path / name), "uid")
    assert part_index.remove_all(str(tmp_path)) == 2
    assert storage.list_files(str(tmp_path), FILE) == []


def test_task_of_rows_that_are_gone_ends_the_run(tmp_path: Path) -> None:
    part = tables.write_part(str(tmp_path), rows_of([1, 2, 3]), {})
    task = tables.task_of({part: ["s1c0", "s2c0"]})
    tables.remove_rows(part, pa.array(["s1c0"]))
    with pytest.raises(RunError, match="1 of its rows were removed while this command ran"):
        tables.read_task(task)
    task = tables.task_of({part: ["s3c0", "s2c0"]})
    assert tables.read_task(task)["uid"].to_pylist() == ["s3c0", "s2c0"]
    storage.remove(part)
    with pytest.raises(RunError, match="was removed while this command ran"):
        tables.read_task(task)
