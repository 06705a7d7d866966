"""Tests of tables with large columns: Arrow's own sorting and taking are the reference where they work."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import large_tables
from cluster.large_tables import (
    byte_strings,
    codes,
    first_of_each,
    is_among,
    join_sorted,
    large_type,
    one_array,
    positions,
    sort_by,
    sorted_positions,
    take,
)

CAPTIONS = pa.list_(pa.struct([pa.field("kind", pa.string(), nullable=False), pa.field("text", pa.string())]))
ROWS = st.lists(
    st.tuples(
        st.text("abc", max_size=3),
        st.integers(0, 4),
        st.none()
        | st.lists(st.fixed_dictionaries({"kind": st.text("xy"), "text": st.none() | st.text("z")}), max_size=3),
    ),
    max_size=20,
)


def table_of(rows: list[tuple[str, int, object]], cut: int) -> pa.Table:
    """Return rows in two chunks."""
    schema = pa.schema([("name", pa.string()), ("number", pa.int64()), ("captions", CAPTIONS)])
    parts = [
        pa.table([pa.array([row[i] for row in part], schema.field(i).type) for i in range(3)], schema)
        for part in (rows[:cut], rows[cut:])
    ]
    return pa.concat_tables(parts)


@given(rows=ROWS, cut=st.integers(0, 20), size=st.integers(1, 5))
def test_sorting_and_taking_equal_arrows(rows: list[tuple[str, int, object]], cut: int, size: int) -> None:
    table = table_of(rows, cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_tables, "ROWS_PER_CHUNK", size)
        assert sort_by(table, "name").equals(table.sort_by("name"))
        order = [("number", "descending"), ("name", "ascending")]
        assert sort_by(table, order).equals(table.sort_by(order))
        indices = pa.array([*range(len(table) - 1, -1, -2), *([None] if rows else [])], pa.int64())
        assert take(table, indices).equals(table.take(indices))
        assert all(len(chunk) <= size for chunk in take(table, indices)["name"].chunks)


@given(rows=ROWS, cut=st.integers(0, 20))
def test_the_first_row_of_each_value_stays(rows: list[tuple[str, int, object]], cut: int) -> None:
    found = first_of_each(table_of(rows, cut), "name")
    firsts = {name: number for name, number, _ in reversed(rows)}
    assert found.select(["name", "number"]).to_pylist() == [
        {"name": name, "number": firsts[name]} for name in dict.fromkeys(row[0] for row in rows)
    ]


def test_positions_are_those_of_the_first_equal_value() -> None:
    values = pa.chunked_array([["b", "a"], ["b", "c"]])
    assert positions(pa.array(["c", "x", "b"]), values).to_pylist() == [3, None, 0]
    assert positions(pa.chunked_array([["a"], ["c"]]), values).to_pylist() == [1, 3]
    assert is_among(pa.chunked_array([["a"], ["x", None]]), values).to_pylist() == [True, False, False]


@settings(max_examples=40)
@given(
    values=st.sets(st.text("ab.é", max_size=3)),
    pieces=st.lists(st.lists(st.none() | st.text("ab.é", max_size=3), max_size=4), max_size=4),
)
def test_positions_in_sorted_values_are_the_same(values: set[str], pieces: list[list[str | None]]) -> None:
    in_order = pa.array(sorted(values, key=str.encode), pa.string())
    column = pa.chunked_array([in_order.slice(0, 2), in_order.slice(2)])
    keys = [pa.array(piece, pa.string()) for piece in pieces]
    found = sorted_positions(keys, column)
    assert found.to_pylist() == [position for piece in keys for position in positions(piece, column).to_pylist()]


@given(st.lists(st.text("ab\u00e9\u4e16", max_size=4), max_size=12), st.integers(0, 12), st.text("ab", max_size=4))
def test_byte_strings_sort_and_search_as_strings(values: list[str], start: int, key: str) -> None:
    column = pa.chunked_array([values[:start], values[start:], [key]], pa.string()).slice(min(start, len(values)))
    padded = byte_strings(column)
    assert [value.decode() for value in padded.tolist()] == column.to_pylist()
    assert np.sort(padded).tolist() == [value.encode() for value in column.take(pc.sort_indices(column)).to_pylist()]
    assert len(byte_strings(column.slice(0, 0))) == 0


def test_joined_tables_are_sorted() -> None:
    table = table_of([("b", 1, None), ("a", 2, [{"kind": "x", "text": "z"}]), ("c", 3, [])], 2)
    assert join_sorted(iter([table.slice(2), table.slice(0, 2)]), "name").equals(table.sort_by("name"))


def test_dictionaries_are_sorted_by_their_strings() -> None:
    names = pa.chunked_array([pa.array(["b", "c"]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()])
    table = pa.table({"name": names, "number": [3, 2, 1, 0]})
    assert sort_by(table, [("name", "descending"), ("number", "ascending")])["number"].to_pylist() == [2, 0, 3, 1]
    assert sort_by(table, "name")["name"].to_pylist() == ["a", "b", "b", "c"]


def test_a_column_of_one_chunk_is_not_copied() -> None:
    chunk = pa.array(["a", "b"])
    joined = one_array(pa.chunked_array([chunk]))
    assert (joined.type, joined.buffers()[2].address) == (pa.large_string(), chunk.buffers()[2].address)


def test_types_are_large_in_nested_types_too() -> None:
    assert large_type(CAPTIONS).value_type.field("text").type == pa.large_string()
    assert not large_type(CAPTIONS).value_type.field("kind").nullable
    assert large_type(pa.binary()) == pa.large_binary()
    assert large_type(pa.binary(4)) == pa.binary(4)


@pytest.mark.slow
def test_more_than_2_gb_of_strings_are_one_array() -> None:
    """The chunk is the same each time, so that only the joined array takes memory."""
    chunk = pa.array(["x" * (1 << 20)] * 16)
    column = pa.chunked_array([chunk] * 130)
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        column.combine_chunks()
    joined = one_array(column)
    assert (len(joined), joined.nbytes > 1 << 31) == (16 * 130, True)
    table = pa.table({"number": pa.array(range(len(joined))), "text": column})
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        table.take(pa.array([0]))
    assert pc.binary_length(take(table, pa.array([len(table) - 1]))["text"]).to_pylist() == [1 << 20]


def test_codes_of_strings_are_their_ranks() -> None:
    column = pa.chunked_array([["b", "a"], ["c", "b"]])
    found, names = codes(column)
    assert (found.tolist(), names.to_pylist()) == ([1, 0, 2, 1], ["a", "b", "c"])
    found, names = codes(pa.chunked_array([], pa.string()))
    assert (found.tolist(), names.to_pylist()) == ([], [])
