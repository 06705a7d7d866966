"""Tables packed into one row each, as they pass through Ray Data, and the workers that unpack them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from pipelines.engine.step import RunError, TableFunction

PACKED_SCHEMA = pa.schema([("number", pa.int64()), ("rows", pa.large_binary()), ("fault", pa.string())])


def pack(number: int, table: pa.Table) -> pa.Table:
    """Pack a task, or the rows between two stages, into one row: Ray splits and joins blocks, but never one row.

    So a part holds all rows of its task or does not exist, and a stage on a GPU gets one task per batch.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.table({"number": [number], "rows": [sink.getvalue().to_pybytes()], "fault": [None]}, PACKED_SCHEMA)


def pack_fault(number: int, error: RunError) -> pa.Table:
    """Pack an error that ends the run: raised in a worker, Ray would wrap it, or take it for the worker's death."""
    return pa.table({"number": [number], "rows": [None], "fault": [str(error)]}, PACKED_SCHEMA)


def unpack(packed: pa.Table) -> tuple[int, pa.Table]:
    """Return the number and the rows of `pack`. Raises the `RunError` of `pack_fault`."""
    if packed["fault"][0].is_valid:
        raise RunError(packed["fault"][0].as_py())
    with pa.ipc.open_stream(packed["rows"][0].as_buffer()) as reader:
        return packed["number"][0].as_py(), reader.read_all()


class PackedWorker:
    """A table function on packed rows, loaded with the first of them."""

    def __init__(self, load: Callable[[], TableFunction]) -> None:
        self._load = load
        self._function: TableFunction | None = None

    def __call__(self, packed: pa.Table) -> pa.Table:
        number = packed["number"][0].as_py()
        try:
            number, table = unpack(packed)
            self._function = self._function or self._load()
            return pack(number, self._function(table))
        except RunError as error:
            return pack_fault(number, error)


class SpreadWorker:
    """A function from packed rows to several tables of plain rows."""

    def __init__(self, load: Callable[[], Callable[[pa.Table], Iterator[pa.Table]]]) -> None:
        self._function = load()

    def __call__(self, packed: pa.Table) -> Iterator[pa.Table]:
        yield from self._function(unpack(packed)[1])
