"""Work over all rows: equal results in this process and on Ray, and all rows of a key in one table."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines import inline
from pipelines.engine import shuffle
from pipelines.engine.executor import Executor
from pipelines.engine.shuffle import LocalRows
from pipelines.engine.tables import TASK_SCHEMA

pytestmark = pytest.mark.slow

SCHEMA = pa.schema([("key", pa.int64()), ("n", pa.int64())])


@pytest.fixture(scope="module", params=["inline", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "inline":
        return inline
    request.getfixturevalue("ray_session")
    from pipelines import run

    return run


def tasks(folder: Path, n: int = 3000, parts: int = 7) -> list[pa.Table]:
    """Write a table of `n` rows in parts, and return a task for the even rows of each part."""
    made = []
    for part, numbers in enumerate(np.array_split(np.arange(n), parts)):
        path = str(folder / f"{part}.parquet")
        pq.write_table(pa.table({"uid": [f"{i:05d}" for i in numbers], "number": numbers, "other": numbers}), path)
        made.append(pa.table({"part": [path], "uids": [[f"{i:05d}" for i in numbers[::2]]]}, TASK_SCHEMA))
    return made


def with_keys(table: pa.Table, divisor: int) -> pa.Table:
    """Return (key, n) of each row, with `divisor` consecutive numbers per key."""
    numbers = table["number"].to_numpy()
    return pa.table({"key": numbers // divisor * 8, "n": numbers}, SCHEMA)


def counted(table: pa.Table) -> pa.Table:
    """Return one row per key with its number of rows. A key whose rows came in two tables has two rows."""
    counts = Counter(table["key"].to_pylist())
    return pa.table({"key": list(counts), "n": list(counts.values())}, SCHEMA)


def no_rows(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def with_text_keys(table: pa.Table) -> pa.Table:
    return table.set_column(0, "key", pc.cast(table["key"], pa.string()))


def test_all_rows_of_a_key_come_in_one_table(executor: Executor, tmp_path: Path) -> None:
    rows = executor.rows(tasks(tmp_path), ["uid", "number"])
    together = rows.map(partial(with_keys, divisor=10)).grouped("key", counted).stored()
    result = together.union(together.map(no_rows)).collect()
    assert result.schema == SCHEMA
    expected = Counter(int(i) // 10 * 8 for numbers in np.array_split(np.arange(3000), 7) for i in numbers[::2])
    assert dict(zip(result["key"].to_pylist(), result["n"].to_pylist(), strict=True)) == expected
    assert len(result) == len(expected)


def test_keys_may_be_text_and_groupings_may_follow(executor: Executor, tmp_path: Path) -> None:
    rows = executor.rows(tasks(tmp_path, 400), ["number"]).map(partial(with_keys, divisor=7)).map(with_text_keys)
    result = rows.grouped("key", with_text_keys).grouped("key", with_text_keys).collect()
    assert sorted(result["n"].to_pylist()) == sorted(rows.collect()["n"].to_pylist())


def test_a_table_without_rows_is_no_error(executor: Executor, tmp_path: Path) -> None:
    rows = executor.rows(tasks(tmp_path, 40), ["number"]).map(partial(with_keys, divisor=7)).map(no_rows)
    assert len(rows.collect()) == 0
    assert len(rows.grouped("key", counted).collect()) == 0


@pytest.mark.parametrize("text", [False, True])
def test_large_rows_are_grouped_in_files(text: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that are grouped, none is left, and all rows of a key come in one table."""
    monkeypatch.setattr(shuffle, "MAX_BLOCK_BYTES", 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    numbers = [pa.table({"number": part}) for part in np.array_split(np.arange(3000), 40)]
    rows = LocalRows(numbers).map(partial(with_keys, divisor=10))
    rows = rows.map(with_text_keys) if text else rows
    groups = rows.grouped("key", lambda table: pa.table({"rows": [table.to_pylist()]})).stored()
    found = [row for group in groups.collect()["rows"].to_pylist() for row in group]
    assert sorted(row["n"] for row in found) == list(range(3000))
    keys = [{row["key"] for row in group} for group in groups.collect()["rows"].to_pylist()]
    assert len(keys) > 30
    assert sum(map(len, keys)) == len(set.union(*keys)) == 300
    assert not list(tmp_path.iterdir())


def test_rows_are_made_anew_unless_they_are_stored() -> None:
    made: list[int] = []

    def noted(table: pa.Table) -> pa.Table:
        made.append(len(table))
        return table

    rows = LocalRows([pa.table({"key": [1, 2]})]).map(noted)
    assert not made
    assert rows.union(rows).collect()["key"].to_pylist() == [1, 2, 1, 2]
    assert len(made) == 2
    stored = rows.stored()
    assert stored.union(stored).collect() == rows.union(rows).collect()
    assert len(made) == 5
