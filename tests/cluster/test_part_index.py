"""The column `part` of an index of parts: one name of each part, whatever rows are left."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from cluster import part_index, storage
from cluster.part_index import PART, read_parts, relative_to, store

SCHEMA = pa.schema([("uid", pa.string()), ("part", PART)])


def test_each_part_is_named_once(tmp_path: Path) -> None:
    for name, uids in (("b", ["1", "2"]), ("a", ["3"]), ("c", ["4", "5"])):
        storage.write_table(str(tmp_path / f"{name}.parquet"), pa.table({"uid": uids}))
    found = read_parts(str(tmp_path), SCHEMA, storage.read_table)
    store(str(tmp_path), found)
    (tmp_path / "a.parquet").unlink()
    left = read_parts(str(tmp_path), SCHEMA, lambda uri: pa.table({}))
    for rows, names in ((found.rows, "abbcc"), (left.rows, "bbcc")):
        assert rows["part"].to_pylist() == [str(tmp_path / f"{name}.parquet") for name in names]
        assert rows["part"].combine_chunks().dictionary.to_pylist() == sorted(set(rows["part"].to_pylist()))
    assert (left.is_stored, part_index.FILE in {path.name for path in tmp_path.iterdir()}) == (True, True)


def test_names_are_in_the_order_of_their_first_rows() -> None:
    uris = pa.array(["f/a", "f/b", "f/c", "f/b"]).dictionary_encode()
    names = relative_to("f/", pa.chunked_array([uris.slice(2)]))
    assert (names.to_pylist(), names.dictionary.to_pylist()) == (["c", "b"], ["c", "b"])
