"""Tests of manifests: they are read back, and wrong ones are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster import storage
from tests.support.stored import CLIPS, STILLS, dataset_info, write_dataset
from training.data.footer import DamagedError
from training.data.manifest import MANIFEST_SCHEMA, read_manifest, tables_root
from training.data.manifest_writer import write_manifest, write_manifest_pieces


def test_a_manifest_is_read_back_sorted(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {STILLS: 3, CLIPS: 5})
    table, info = read_manifest(uri)
    assert info == dataset_info()
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert table["uid"].to_pylist() == sorted(table["uid"].to_pylist())
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    write_manifest(str(tmp_path / "again"), shuffled, info)
    assert read_manifest(str(tmp_path / "again"))[0].equals(table)


def test_a_manifest_of_an_earlier_version_names_the_fix(tmp_path: Path) -> None:
    uri = write_dataset(tmp_path, {CLIPS: 4})
    stored = storage.read_table(uri)
    storage.write_table(uri, stored.drop_columns(["source_width"]))
    with pytest.raises(
        DamagedError, match=r"written by an earlier version, without columns \['source_width'\]; run the recipe again"
    ):
        read_manifest(uri)


def test_wrong_manifests_are_refused(tmp_path: Path) -> None:
    table, info = read_manifest(write_dataset(tmp_path, {CLIPS: 4}))
    uri = str(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"lacks columns \['n_text'\]"):
        write_manifest(uri, table.drop_columns(["n_text"]), info)
    with pytest.raises(ValueError, match=r"uid 32x16x9-0001 is in several rows"):
        write_manifest(uri, pa.concat_tables([table, table.slice(1, 1)]), info)
    for name, value, message in [
        ("split", "holdout", r"split holds \['holdout'\]"),
        ("kind", "gif", r"kind holds \['gif'\]"),
    ]:
        column = table.column_names.index(name)
        with pytest.raises(ValueError, match=message):
            write_manifest(uri, table.set_column(column, name, pa.array([value] * 4)), info)
    nulls = table.set_column(0, pa.field("uid", pa.string()), pa.array(["a", None, "b", "c"]))
    with pytest.raises(ValueError, match=r"columns \['uid'\] have rows without a value"):
        write_manifest(uri, nulls, info)
    with pytest.raises(ValueError, match=r"not sorted by uid: 32x16x9-0000 is after a larger one"):
        write_manifest_pieces(uri, [table.slice(1), table.slice(0, 1)], info)
    assert not Path(uri).exists()


@pytest.mark.parametrize(
    ("manifest", "root", "expected"),
    [
        ("/a/tables/manifest-1/_manifest.parquet", "..", "/a/tables"),
        ("/a/tables/_manifest.parquet", "", "/a/tables"),
        ("/a/tables/_manifest.parquet", ".", "/a/tables"),
        ("s3://bucket/run/tables/manifest-1/_manifest.parquet", "..", "s3://bucket/run/tables"),
        ("/a/x/y/_manifest.parquet", "../../tables", "/a/tables"),
    ],
)
def test_the_tables_root_is_relative_to_the_manifest(manifest: str, root: str, expected: str) -> None:
    assert tables_root(manifest, replace(dataset_info(), tables_root=root)) == expected
