"""Tests of tables with large columns: Arrow's own sorting and taking are the reference where they work."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import large_tables
from cluster.large_tables import codes, first_of_each, is_among, large_type, one_array, positions, sort_by, take

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
