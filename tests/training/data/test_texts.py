from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import flip_bit

from training.data import texts
from training.data.footer import DamagedError
from training.data.texts import TextReader, text_keys, text_lengths, write_texts


def embeddings(lengths: list[int], dim: int, seed: int = 0) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    return {f"key-{number:03d}": chance.normal(size=(n, dim)).astype(np.float32) for number, n in enumerate(lengths)}


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), dim=st.integers(1, 24), row_group_bytes=st.integers(1, 4000))
def test_what_is_written_comes_back_unpadded(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dim: int, row_group_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("texts")
    stored = embeddings(lengths, dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "ROW_GROUP_BYTES", row_group_bytes)
        write_texts(str(folder / "part.parquet"), stored, "encoder-1")
    reader = TextReader(str(folder))
    assert (reader.identity, reader.dim) == ("encoder-1", dim)
    for key, tokens in stored.items():
        found = reader.get(key)
        assert found.shape == tokens.shape
        assert torch.equal(found, torch.from_numpy(tokens).to(torch.bfloat16))
    assert text_keys(str(folder)) == set(stored)
    assert text_lengths(str(folder)) == {key: len(tokens) for key, tokens in stored.items()}


def test_several_tables_are_read_as_one_and_unfinished_ones_are_not_seen(tmp_path: Path) -> None:
    write_texts(str(tmp_path / "a.parquet"), embeddings([2, 3], 8), "e")
    write_texts(str(tmp_path / "b.parquet"), {"other": np.ones((1, 8), np.float32)}, "e")
    (tmp_path / ".part-123-c.parquet").write_bytes(b"half")
    assert text_keys(str(tmp_path)) == {"key-000", "key-001", "other"}
    assert "other" in TextReader(str(tmp_path))
    assert TextReader(str(tmp_path)).get("other").tolist() == [[1.0] * 8]


def test_no_folder_holds_no_keys(tmp_path: Path) -> None:
    assert text_keys(str(tmp_path / "none")) == set()
    reader = TextReader(str(tmp_path / "none"))
    assert reader.identity is None
    with pytest.raises(DamagedError, match="none: no embedding of text k"):
        reader.get("k")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "at least one embedding"),
        ({"k": np.zeros((0, 4), np.float32)}, r"text k: embedding of shape \(0, 4\)"),
        ({"a": np.zeros((1, 4), np.float32), "b": np.zeros((1, 5), np.float32)}, r"text b: .*give \[n, 4\]"),
        ({"k": np.array([[np.inf]], np.float32)}, "text k: .*not finite"),
        ({"k": np.array([[3.4e38]], np.float32)}, "text k: .*not finite"),  # overflows when rounded to bfloat16
    ],
)
def test_embeddings_that_cannot_be_stored_are_refused(tmp_path: Path, stored: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_texts(str(tmp_path / "a.parquet"), stored, "e")
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_named(tmp_path: Path) -> None:
    stored = embeddings([4], 64)
    write_texts(str(tmp_path / "a.parquet"), stored, "e")
    data = torch.from_numpy(stored["key-000"]).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    flip_bit(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes().index(data) + 100)
    with pytest.raises(DamagedError, match=r"a.parquet: row 0 of row group 0, text key-000: its bytes are not those"):
        TextReader(str(tmp_path)).get("key-000")


def test_other_files_and_other_encoders_are_refused(tmp_path: Path) -> None:
    write_texts(str(tmp_path / "a.parquet"), embeddings([1], 8), "e")
    write_texts(str(tmp_path / "b.parquet"), embeddings([1], 8), "f")
    with pytest.raises(DamagedError, match=r"b.parquet: was written by text encoder f, other tables of the folder by e"):
        TextReader(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DamagedError, match=r"b.parquet: its footer holds no description"):
        TextReader(str(tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DamagedError, match=r"b.parquet: cannot be opened"):
        TextReader(str(tmp_path))
