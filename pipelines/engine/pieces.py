"""Long rows done in pieces: which rows, their pieces as orders of their own, and the orders that join them again.

A segment whose first step is `Divisible` runs in up to three rounds: all its rows, where a worker that meets a long one puts
a plan of its pieces into the table's folder instead of doing it; the pieces, the dearest first; and the long rows again, now
joined from what their pieces gave. Plans and results lie beside the parts until the row is done, so a killed run goes on
with the pieces that are left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from cluster import storage
from pipelines.engine.step import Divisible, Mark, Piece, RunError, TableFunction, failure, map_rows

PLAN_SUFFIX = ".plan.json"
PIECE_SUFFIX = ".piece"
PIECE_COLUMN = "piece_of_work"
JOIN_COLUMN = "pieces_of_work"

FAILED, DONE = b"F", b"D"
"""First byte of a result: the reason why the piece failed follows, or what the step gave."""


def plan_long_rows(step: Divisible, folder: str, table: pa.Table) -> pa.Table:
    """The rows that are done whole; for the others a plan is written. A row that cannot be looked at is left to fail as a whole."""
    whole = []
    for row in table.to_pylist():
        try:
            pieces = step.divide(row)
        except RunError:
            raise
        except Exception:  # whatever it is, the row's own work meets it again and the row carries it
            pieces = ()
        if pieces:
            storage.write_bytes(_plan_uri(folder, row["uid"]), json.dumps([asdict(piece) for piece in pieces]).encode())
        whole.append(not pieces)
    return table.filter(pa.array(whole, pa.bool_()))


def piece_tasks(folder: str, rows: pa.Table) -> list[pa.Table]:
    """An order for each piece that is still to be done, the dearest first; `rows` are those of the table that are not done."""
    done = _names(folder, PIECE_SUFFIX)
    tasks: list[tuple[float, pa.Table]] = []
    for i, plan in _plans(folder, rows):
        row = rows.slice(i, 1)
        uid = row["uid"][0].as_py()
        for piece in plan:
            if _piece_name(uid, piece.number) not in done:
                tasks.append((piece.cost, row.append_column(PIECE_COLUMN, pa.array([json.dumps(asdict(piece))]))))
    return [task for _, task in sorted(tasks, key=lambda item: -item[0])]


def join_tasks(folder: str, rows: pa.Table) -> list[pa.Table]:
    """An order for each row that has a plan: to be run when all its pieces are done."""
    return [rows.slice(i, 1).append_column(JOIN_COLUMN, pa.array([len(plan)])) for i, plan in _plans(folder, rows)]


def is_piece(task: pa.Table) -> bool:
    return PIECE_COLUMN in task.column_names


def is_join(task: pa.Table) -> bool:
    return JOIN_COLUMN in task.column_names


def do_piece(step: Divisible, folder: str, task: pa.Table) -> None:
    """Do a piece and keep its result. An error is a result too: it fails the row when it is joined."""
    (row,) = task.to_pylist()
    piece = Piece(**json.loads(row.pop(PIECE_COLUMN)))
    try:
        result = DONE + step.run_piece(row, piece)
    except RunError:
        raise
    except Exception as error:  # the row carries it
        result = FAILED + failure(error).reason.encode()
    storage.write_bytes(storage.join(folder, _piece_name(row["uid"], piece.number)), result)


def join_function(step: Divisible, folder: str, counts: Mapping[str, int]) -> TableFunction:
    """The step's work on rows whose pieces are done, as a function of a table."""

    def join(row: dict[str, Any]) -> Mapping[str, Any] | Mark:
        results = [
            storage.read_bytes(storage.join(folder, _piece_name(row["uid"], number)))
            for number in range(counts[row["uid"]])
        ]
        for result in results:
            if result[:1] == FAILED:
                return Mark("failed", result[1:].decode())
        return step.join(row, [result[1:] for result in results])

    return lambda table: map_rows(table, step.writes(), join)


def planned(folder: str) -> bool:
    """Whether any row of a table is to be done in pieces."""
    return bool(storage.list_files(folder, PLAN_SUFFIX))


def clear(folder: str) -> None:
    """Remove all plans and results, once every row is done."""
    for suffix in (PIECE_SUFFIX, PLAN_SUFFIX):
        for entry in storage.list_files(folder, suffix):
            storage.remove(entry.uri)


def _plans(folder: str, rows: pa.Table) -> list[tuple[int, list[Piece]]]:
    plans = _names(folder, PLAN_SUFFIX)
    uids = rows["uid"].to_pylist()
    found = [(i, uid) for i, uid in enumerate(uids) if uid + PLAN_SUFFIX in plans]
    return [
        (i, [Piece(**piece) for piece in json.loads(storage.read_bytes(_plan_uri(folder, uid)))]) for i, uid in found
    ]


def _names(folder: str, suffix: str) -> set[str]:
    return {entry.uri.rsplit("/", 1)[-1] for entry in storage.list_files(folder, suffix)}


def _plan_uri(folder: str, uid: str) -> str:
    return storage.join(folder, uid + PLAN_SUFFIX)


def _piece_name(uid: str, number: int) -> str:
    return f"{uid}~{number}{PIECE_SUFFIX}"
