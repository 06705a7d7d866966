"""Tests of which files below `tables` are parts of steps' tables, and which are not listed for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import storage
from pipelines.engine import tables


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
