"""Tables with more than 2 GB in a column of strings.

Arrow's `string` has 32-bit offsets, so no array of it holds more. A column of several chunks may, but `take`, `sort_by`
and `combine_chunks` of a column make one array of it, and fail. The functions here do not.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.arrays import BoolArray, BytesArray, Int64Array

ROWS_PER_CHUNK = 1 << 16
"""Rows of a chunk of what is taken: at 8 KB each they are 0.5 GB, which one array of strings holds."""

BYTES_PER_PIECE = 1 << 28
"""Bytes from which on chunks that are read from are not joined to larger ones."""

Rows = TypeVar("Rows", pa.Table, pa.ChunkedArray, pa.Array)

Order = str | Sequence[tuple[str, str]]
"""Name of the column to sort by, ascending, or pairs of a column and `ascending` or `descending`."""


def large_type(kind: pa.DataType) -> pa.DataType:
    """Return a type with 64-bit offsets in place of strings and binaries, in nested types too."""
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_large_field(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([_large_field(kind.field(i)) for i in range(kind.num_fields)])
    return kind


def _large_field(field: pa.Field) -> pa.Field:
    return field.with_type(large_type(field.type))


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, of its `large_type`. Values of a column of one chunk are not copied."""
    column = column.cast(large_type(column.type))
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def positions(keys: pa.ChunkedArray | pa.Array, values: pa.ChunkedArray) -> pa.Array:
    """Return the index of each key's first row in `values`, null for a key that is not among them."""
    keys = keys if isinstance(keys, pa.ChunkedArray) else pa.chunked_array([keys])
    return pc.index_in(one_array(keys), value_set=one_array(values))


def sorted_positions(keys: Iterable[pa.ChunkedArray | pa.Array], values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return what `positions` does, for sorted strings as `values` and pieces of keys that are near each other in them.

    Of each piece, only the values from its smallest to its largest key are looked up: a table of all takes more memory
    than the values.
    """
    found = []
    for piece in keys:
        smallest, largest = pc.min_max(piece).as_py().values()
        if smallest is None:  # there is no key
            found.append(pa.nulls(len(piece), pa.int32()))
            continue
        start = bisect_left(range(len(values)), smallest, key=lambda row: values[row].as_py())
        end = bisect_right(range(len(values)), largest, key=lambda row: values[row].as_py())
        found.append(pc.add(positions(piece, values.slice(start, end - start)), pa.scalar(start, pa.int32())))
    return pa.chunked_array(found, pa.int32())


def byte_strings(column: pa.ChunkedArray | pa.Array) -> BytesArray:
    """Return strings as bytes of one width, padded with zeros, in the same order when sorted. There are no nulls.

    Many small pieces are looked up in sorted ones by `np.searchsorted`, where `positions` would make a hash table of
    all values for each piece.
    """
    array = one_array(column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column]))
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] if len(array) else np.zeros(1)
    lengths = np.diff(ends).astype(np.int64)
    width = max(1, int(lengths.max(initial=0)))
    padded = np.zeros((len(array), width), np.uint8)
    if data is not None:
        padded[np.arange(width) < lengths[:, None]] = np.frombuffer(data, np.uint8)[int(ends[0]) : int(ends[-1])]
    strings: BytesArray = padded.view(f"S{width}")[:, 0]
    return strings


def is_among(keys: pa.ChunkedArray | pa.Array, values: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Return for each key whether it is among `values`."""
    return pc.is_valid(positions(keys, values))


def codes(column: pa.ChunkedArray) -> tuple[Int64Array, pa.Array]:
    """Return the index of each string of a column into its distinct strings, and these in order. There are no nulls.

    A column that is a dictionary may have strings that no row has.
    """
    encoded = one_array(column).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], encoded.dictionary.take(order)


def in_chunks(rows: Rows) -> Iterator[Rows]:
    """Yield the rows of a table, a column or an array, `ROWS_PER_CHUNK` at a time."""
    for start in range(0, len(rows), ROWS_PER_CHUNK):
        yield rows.slice(start, ROWS_PER_CHUNK)


def values_of(column: pa.ChunkedArray | pa.Array) -> Iterator[Any]:
    """Yield the values of a column as Python's, with `ROWS_PER_CHUNK` of them in memory at a time."""
    for chunk in in_chunks(column):
        yield from chunk.to_pylist()


def list_array(values: pa.Array, ends: Int64Array) -> pa.ListArray:
    """Return lists of values that follow each other, by the index after the last value of each list."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate(([0], ends)), pa.int32()), values)


def take(table: pa.Table, indices: pa.Array) -> pa.Table:
    """Return rows of a table by their indices, in chunks of `ROWS_PER_CHUNK`, without metadata."""
    columns = [take_column(table[name], indices) for name in table.column_names]
    return pa.Table.from_arrays(columns, schema=table.schema.remove_metadata())


def take_column(column: pa.ChunkedArray, indices: pa.Array) -> pa.ChunkedArray:
    """Return cells of a column by their indices, null for null, in chunks of `ROWS_PER_CHUNK`.

    Large chunks of strings and lists are not joined, so nothing but the result takes memory.
    """
    column = column.unify_dictionaries()
    is_narrow = pa.types.is_primitive(column.type) or pa.types.is_dictionary(column.type)
    pieces = [column.combine_chunks()] if is_narrow or not column.num_chunks else _joined(column.chunks)
    ends = np.cumsum([len(piece) for piece in pieces])
    return pa.chunked_array([_take(pieces, ends, rows) for rows in in_chunks(indices)], column.type)


def _joined(chunks: Sequence[pa.Array]) -> list[pa.Array]:
    """Join neighbouring chunks to arrays of at least `ROWS_PER_CHUNK` rows or `BYTES_PER_PIECE`, but for the last."""
    pieces: list[pa.Array] = []
    pending: list[pa.Array] = []
    n_rows = n_bytes = 0
    for number, chunk in enumerate(chunks, 1):
        pending.append(chunk)
        n_rows, n_bytes = n_rows + len(chunk), n_bytes + chunk.nbytes
        if number == len(chunks) or n_rows >= ROWS_PER_CHUNK or n_bytes >= BYTES_PER_PIECE:
            pieces.append(pa.concat_arrays(pending) if len(pending) > 1 else chunk)
            pending, n_rows, n_bytes = [], 0, 0
    return pieces


def _take(pieces: Sequence[pa.Array], ends: Int64Array, indices: pa.Array) -> pa.Array:
    """Return cells by their indices `[N]` in a column. `ends` are its rows up to the end of each of its pieces."""
    if len(pieces) == 1:
        return pieces[0].take(indices)
    row_M = np.asarray(indices.drop_null(), np.int64)
    piece_M = np.searchsorted(ends, row_M, "right")
    order_M = np.argsort(piece_M.astype(np.uint16), kind="stable")  # a radix sort, ten times faster than of int64
    found, end = [], 0
    for piece, first, count in zip(pieces, (0, *ends), np.bincount(piece_M, minlength=len(pieces)), strict=False):
        start, end = end, end + int(count)
        found.append(piece.take(pa.array(row_M[order_M[start:end]] - first)))
    is_null_N = np.asarray(indices.is_null())
    at_N = np.zeros(len(indices), np.int64)
    at_N[np.flatnonzero(~is_null_N)[order_M]] = np.arange(len(row_M))
    return pa.concat_arrays(found).take(pa.array(at_N, mask=is_null_N))


def sort_by(table: pa.Table, order: Order) -> pa.Table:
    """Return a table sorted as `pa.Table.sort_by` does, without metadata; also by dictionaries, by their strings."""
    return take(table, _sorted_indices(table, order))


def join_sorted(tables: Iterable[pa.Table], order: Order) -> pa.Table:
    """Return the rows of tables that nothing else refers to, as `sort_by` does. Only one column is in memory twice."""
    table = pa.concat_tables(tables)
    indices, schema, columns = _sorted_indices(table, order), table.schema.remove_metadata(), []
    for name in schema.names:
        columns.append(take_column(table[name], indices))
        table = table.drop_columns([name])
    return pa.Table.from_arrays(columns, schema=schema)


def _sorted_indices(table: pa.Table, order: Order) -> pa.Array:
    keys = [(order, "ascending")] if isinstance(order, str) else list(order)
    columns = {name: table[name] for name, _ in keys}
    for name, column in columns.items():
        if pa.types.is_dictionary(column.type):
            columns[name] = pa.array(codes(column)[0])
    return pc.sort_indices(pa.table(columns), sort_keys=keys)


def is_first(column: pa.ChunkedArray) -> BoolArray:
    """Return for each row of a column `[N]` whether no row before it has its value."""
    values = one_array(column)
    first_N: BoolArray = np.asarray(pc.index_in(values, value_set=values)) == np.arange(len(values), dtype=np.int32)
    return first_N


def first_of_each(table: pa.Table, column: str) -> pa.Table:
    """Return the first row of each value of a column, in the order of the rows."""
    first_N = is_first(table[column])
    return table if first_N.all() else table.filter(pa.array(first_N))
