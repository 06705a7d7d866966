"""Tests of text tables: what is written is read back bit for bit, or refused with its file and key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.encoder import TextEmbedding
from tests.support.stored import flip_bit
from training.data import text_tables
from training.data.footer import DamagedError
from training.data.text_index import read_text_index
from training.data.text_tables import TextEncoding, TextPlace, TextReader, read_encoding, write_text_table


def embeddings(lengths: list[int], dim: int, pooled_dim: int = 0, seed: int = 0) -> dict[str, TextEmbedding]:
    """Return random embeddings by key, one for each number of tokens."""
    rng = np.random.default_rng(seed)
    return {
        f"key-{number:03d}": TextEmbedding(
            rng.normal(size=(n, dim)).astype(np.float32),
            truncated=bool(rng.integers(2)),
            pooled=rng.normal(size=pooled_dim).astype(np.float32) if pooled_dim else None,
        )
        for number, n in enumerate(lengths)
    }


def constant(value: float, n: int = 1, dim: int = 4, pooled: int | None = None) -> TextEmbedding:
    return TextEmbedding(
        np.full((n, dim), value, np.float32), pooled=None if pooled is None else np.ones(pooled, np.float32)
    )


def keys_of(folder: Path) -> set[str]:
    return set(read_text_index(str(folder)).rows["key"].to_pylist())


def places_of(folder: Path) -> dict[str, TextPlace]:
    index = read_text_index(str(folder))
    return {place.key: place for place in index.places(index.rows)}


@pytest.mark.slow
@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    dim=st.integers(1, 24),
    pooled_dim=st.integers(0, 9),
    row_group_bytes=st.integers(1, 4000),
)
def test_written_embeddings_are_read_unpadded(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dim: int, pooled_dim: int, row_group_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    stored = embeddings(lengths, dim, pooled_dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_tables, "ROW_GROUP_BYTES", row_group_bytes)
        write_text_table(str(folder / "part.parquet"), stored, "encoder-1")
    reader, places = TextReader("encoder-1"), places_of(folder)
    assert read_text_index(str(folder)).encoding() == TextEncoding("encoder-1", dim, pooled_dim)
    for key, embedding in stored.items():
        found = reader.get(places[key])
        assert found.shape == embedding.tokens.shape
        assert torch.equal(found, torch.from_numpy(embedding.tokens).to(torch.bfloat16))
        pooled = reader.pooled(places[key])
        assert (pooled is None) == (not pooled_dim)
        assert pooled is None or torch.equal(pooled, torch.from_numpy(embedding.pooled).to(torch.bfloat16))
    rows = [
        {"key": key, "n": len(embedding.tokens), "truncated": embedding.truncated} for key, embedding in stored.items()
    ]
    found_rows = read_text_index(str(folder)).rows.select(["key", "n", "truncated"])
    assert found_rows.sort_by("key").to_pylist() == rows


def test_tables_are_read_as_one_without_unfinished_ones(tmp_path: Path) -> None:
    write_text_table(str(tmp_path / "a.parquet"), embeddings([2, 3], 8), "e")
    write_text_table(str(tmp_path / "b.parquet"), {"other": constant(1, dim=8)}, "e")
    (tmp_path / ".part-123-c.parquet").write_bytes(b"half")
    assert keys_of(tmp_path) == {"key-000", "key-001", "other"}
    assert TextReader("e").get(places_of(tmp_path)["other"]).tolist() == [[1.0] * 8]


def test_a_missing_folder_has_no_keys(tmp_path: Path) -> None:
    assert keys_of(tmp_path / "none") == set()
    assert read_text_index(str(tmp_path / "none")).encoding() is None


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "at least one embedding"),
        ({"k": constant(0, n=0)}, r"text k: embedding of shape \(0, 4\)"),
        ({"a": constant(0), "b": constant(0, dim=5)}, r"text b: .*give \[n, 4\]"),
        ({"a": constant(0, pooled=3), "b": constant(0)}, r"text b: pooled of shape None; give \[3\]"),
        (
            {"a": constant(0), "b": constant(0, pooled=3)},
            r"text b: pooled of shape \(3,\); give \[0\] with every text, or none",
        ),
        ({"k": constant(np.inf)}, "text k: .*not finite"),
        ({"k": constant(3.4e38)}, "text k: .*not finite"),  # overflows when rounded to bfloat16
    ],
)
def test_embeddings_that_cannot_be_stored_are_refused(
    tmp_path: Path, stored: dict[str, TextEmbedding], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_text_table(str(tmp_path / "a.parquet"), stored, "e")
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_two_tables_counts_once(tmp_path: Path) -> None:
    write_text_table(str(tmp_path / "a.parquet"), {"x": constant(1), "y": constant(1)}, "e")
    write_text_table(str(tmp_path / "b.parquet"), {"y": constant(1), "z": constant(1, n=2)}, "e")
    rows = read_text_index(str(tmp_path)).rows
    assert sorted(zip(*(rows[name].to_pylist() for name in ("key", "n")), strict=True)) == [
        ("x", 1),
        ("y", 1),
        ("z", 2),
    ]


@pytest.mark.parametrize("part", ["tokens", "pooled"])
def test_a_flipped_bit_is_reported_with_its_row(part: str, tmp_path: Path) -> None:
    stored = embeddings([4], 64, 64)
    write_text_table(str(tmp_path / "a.parquet"), stored, "e")
    data = torch.from_numpy(getattr(stored["key-000"], part)).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    flip_bit(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes().index(data) + 100)
    reader, place = TextReader("e"), places_of(tmp_path)["key-000"]
    message = r"a.parquet: row 0 of row group 0, text key-000: its bytes are not those"
    for read in (reader.get, reader.pooled):
        with pytest.raises(DamagedError, match=message):
            read(place)


def test_other_files_and_encoders_are_refused(tmp_path: Path) -> None:
    write_text_table(str(tmp_path / "a.parquet"), embeddings([1], 8), "e")
    write_text_table(str(tmp_path / "b.parquet"), embeddings([1], 8), "f")
    with pytest.raises(
        DamagedError, match=r"b.parquet: was written by text encoder f, other tables of the folder by e"
    ):
        read_text_index(str(tmp_path)).encoding()
    place = TextPlace(str(tmp_path / "b.parquet"), 0, 0, 0, "key-000")
    with pytest.raises(DamagedError, match=r"b.parquet: holds embeddings by f, and the manifest says e; curate again"):
        TextReader("e").get(place)
    names = r"\['key', 'n', 'embedding', 'checksum'\]"
    older = pq.read_table(tmp_path / "a.parquet").drop_columns(["truncated", "pooled"])
    pq.write_table(older, tmp_path / "b.parquet")
    version = rf"b.parquet: is not a text table of this version: its columns are {names}"
    with pytest.raises(DamagedError, match=version):
        read_text_index(str(tmp_path))
    with pytest.raises(DamagedError, match=version):
        TextReader("e").get(place)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DamagedError, match=r"b.parquet: its footer has no description"):
        read_text_index(str(tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DamagedError, match=r"b.parquet: cannot be opened"):
        read_text_index(str(tmp_path))


def test_a_stored_index_stands_for_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, keys in (("a", [2, 3]), ("b", [4])):
        stored = {f"{name}-{key}": value for key, value in embeddings(keys, 8).items()}
        write_text_table(str(tmp_path / f"{name}.parquet"), stored, "e")
    first = read_text_index(str(tmp_path))
    assert not first.found.is_stored
    first.store()
    with monkeypatch.context() as patch:
        patch.setattr("training.data.text_index.read_scalars", None)
        again = read_text_index(str(tmp_path))
    assert again.found.is_stored
    assert again.rows.sort_by("key").equals(first.rows.sort_by("key"))
    write_text_table(str(tmp_path / "b.parquet"), embeddings([1], 8, seed=1), "e")
    assert keys_of(tmp_path) == {"a-key-000", "a-key-001", "key-000"}, "a table that was written anew is read itself"
    assert first.encoding() == read_encoding(str(tmp_path / "a.parquet"))
