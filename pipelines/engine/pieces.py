"""Pieces of long rows: plans, one task per piece, and the tasks that join the results.

A segment whose first step is `Divisible` runs in up to three rounds. First all rows: a worker that finds a long one
writes a plan of its pieces into the table's folder instead of running it. Then the pieces, the costliest first. Then
the long rows again, joined from the results of their pieces. Plans and results are stored beside the parts until the
row is done, so a killed run resumes with the remaining pieces.
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
"""First byte of a stored result: the reason of a failure follows, or the step's own bytes."""


def plan_long_rows(step: Divisible, folder: str, table: pa.Table) -> pa.Table:
    """Return the rows that are not divided, and write a plan for each other row.

    A row whose division raises is not divided: its own work meets the same error.
    """
    whole = []
    for row in table.to_pylist():
        try:
            pieces = step.divide(row)
        except RunError:
            raise
        except Exception:  # the row's own work meets the same error and records it
            pieces = ()
        if pieces:
            storage.write_bytes(_plan_uri(folder, row["uid"]), json.dumps([asdict(piece) for piece in pieces]).encode())
        whole.append(not pieces)
    return table.filter(pa.array(whole, pa.bool_()))


def piece_tasks(folder: str, rows: pa.Table) -> list[pa.Table]:
    """Return a task for each piece that is not done, the costliest first. `rows` are the pending rows of the table."""
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
    """Return a task for each row that has a plan, to be run when all its pieces are done."""
    return [rows.slice(i, 1).append_column(JOIN_COLUMN, pa.array([len(plan)])) for i, plan in _plans(folder, rows)]


def is_piece(task: pa.Table) -> bool:
    """Return whether a task is a piece of a long row."""
    return PIECE_COLUMN in task.column_names


def is_join(task: pa.Table) -> bool:
    """Return whether a task joins the pieces of a long row."""
    return JOIN_COLUMN in task.column_names


def run_piece(step: Divisible, folder: str, task: pa.Table) -> None:
    """Run a piece and store its result. An error is a result too: it fails the row when the pieces are joined."""
    (row,) = task.to_pylist()
    piece = Piece(**json.loads(row.pop(PIECE_COLUMN)))
    try:
        result = DONE + step.run_piece(row, piece)
    except RunError:
        raise
    except Exception as error:  # recorded in the row when its pieces are joined
        result = FAILED + failure(error).reason.encode()
    storage.write_bytes(storage.join(folder, _piece_name(row["uid"], piece.number)), result)


def join_function(step: Divisible, folder: str, counts: Mapping[str, int]) -> TableFunction:
    """Return a table function that joins the stored results of rows. `counts` holds the number of pieces by uid."""

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
    """Return whether any row of a table has a plan."""
    return bool(storage.list_files(folder, PLAN_SUFFIX))


def clear(folder: str) -> None:
    """Remove all plans and results, after every row is done."""
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
