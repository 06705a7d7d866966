"""Tests of which files below `tables` are parts of steps' tables, and which are not listed for them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster import storage
from pipelines.engine import tables
from pipelines.engine.table_index import Index


def test_shards_and_manifests_are_no_parts_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("scan-1/part-a", "encode-2/part-b", "latents-3/bucket=x/part-c", "texts-4/part-d", "manifest-5/_manifest")
    for name in names:
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "manifest-5/_manifest.index.arrow").touch()
    listed: list[str] = []
    list_files = storage.list_files

    def recorded(uri: str, suffix: str = "") -> list[storage.Entry]:
        listed.append(uri.rpartition("/")[2])
        return list_files(uri, suffix)

    monkeypatch.setattr(storage, "list_files", recorded)
    root = str(tmp_path)
    assert tables.step_parts(root) == [f"{root}/encode-2/part-b.parquet", f"{root}/scan-1/part-a.parquet"]
    assert tables.manifests(root) == [f"{root}/manifest-5/_manifest.parquet"]
    assert listed == ["encode-2", "scan-1", "manifest-5"]
    assert tables.manifests(f"{root}/none") == []


def test_few_and_many_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    n = 3 * tables.FEW_ROWS
    uids = [f"{i:08d}" for i in range(n)]
    images = [[bytes([i % 251])] for i in range(n)]
    table = pa.table({"images": pa.array(images, pa.list_(pa.binary())), "uid": uids, "number": range(n)})
    part = tables.write_part(str(tmp_path), table, {})
    for rows in ([n - 1, 0, 7], [], list(range(n - 1, 0, -1)), list(range(n))):
        found = tables.read_rows(part, [uids[i] for i in rows], ["number", "images"])
        assert found.column_names == ["number", "images"]
        assert found["number"].to_pylist() == rows
        assert found["images"].to_pylist() == [images[i] for i in rows]
    assert tables.read_rows(part, uids[:2], None).equals(table.slice(0, 2))


def test_tasks_and_parts_of_an_index(tmp_path: Path) -> None:
    parts = ["b", "a", "b", "c", "a"]
    uids = [f"u{number}" for number in range(5)]
    index = Index(pa.table({"uid": uids, "part": parts}))
    assert [(part, found.to_pylist()) for part, found in index.by_part()] == [
        ("a", ["u1", "u4"]),
        ("b", ["u0", "u2"]),
        ("c", ["u3"]),
    ]
    assert [tables.uids_of(task) for task in index.tasks(2)] == [[uid] for uid in ("u1", "u4", "u0", "u2", "u3")]
    assert list(Index(index.rows.slice(0, 0)).by_part()) == []
    task = tables.task_of({"a": ["u1"], "b": pa.array(["u0", "u2"])})
    assert task.to_pylist() == [{"part": "a", "uids": ["u1"]}, {"part": "b", "uids": ["u0", "u2"]}]
