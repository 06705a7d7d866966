"""Pieces of long rows: plans, one task per piece, and the tasks that join the results.

A segment whose first step is `Divisible` runs in up to three rounds. First all rows: a worker that finds a long one
writes a plan of its pieces into the table's folder instead of running it. Then the pieces, the costliest first. Then
the long rows again, joined from the results of their pieces. Plans and results are stored beside the parts until the
row is done, so a killed run resumes with the remaining pieces. They are data: a result begins with a line of JSON, and
the step parses the rest. A result of another plan or version, or one that does not parse, is made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa

from cluster import storage
from cluster.telemetry import log
from cluster.unreadable import cannot_be_read
from pipelines.engine.pending import retry
from pipelines.engine.step import Divisible, Mark, Piece, RunError, TableFunction, failure, map_rows

PLAN_SUFFIX = ".plan.json"
PIECE_SUFFIX = ".piece"
PIECE_COLUMN = "piece_of_work"
JOIN_COLUMN = "pieces_of_work"

VERSION = 1
"""Version of a stored result."""


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
    return [
        rows.slice(i, 1).append_column(JOIN_COLUMN, pa.array([json.dumps([asdict(piece) for piece in plan])]))
        for i, plan in _plans(folder, rows)
    ]


def split_plans(task: pa.Table) -> tuple[pa.Table, dict[str, list[Piece]]]:
    """Return the rows of a task of `join_tasks`, and the pieces of each by uid."""
    plans = [[Piece(**piece) for piece in json.loads(plan)] for plan in task[JOIN_COLUMN].to_pylist()]
    return task.drop_columns([JOIN_COLUMN]), dict(zip(task["uid"].to_pylist(), plans, strict=True))


def is_piece(task: pa.Table) -> bool:
    """Return whether a task is a piece of a long row."""
    return PIECE_COLUMN in task.column_names


def is_join(task: pa.Table) -> bool:
    """Return whether a task joins the pieces of a long row."""
    return JOIN_COLUMN in task.column_names


def run_piece(step: Divisible, folder: str, task: pa.Table) -> str:
    """Run a piece and store its result. An error is a result too: it fails the row when the pieces are joined.

    A piece whose source cannot be read has no result; return the reason, which is empty for any other.
    """
    (row,) = task.to_pylist()
    piece = Piece(**json.loads(row.pop(PIECE_COLUMN)))
    try:
        result = retry(partial(_run, step, row, piece))
    except Exception as error:
        if not cannot_be_read(error):
            raise
        return failure(error).reason
    storage.write_bytes(storage.join(folder, _piece_name(row["uid"], piece.number)), result)
    return ""


def _run(step: Divisible, row: Mapping[str, Any], piece: Piece) -> bytes:
    """Return the stored result of a piece: a line of JSON with its description, then the step's bytes.

    An error that says nothing about the content of the source is raised: it is no result.
    """
    reason, result = None, b""
    try:
        result = step.run_piece(row, piece)
    except RunError:
        raise
    except Exception as error:  # recorded in the row when its pieces are joined
        if cannot_be_read(error):
            raise
        reason = failure(error).reason
    return json.dumps({**_header(piece), "failed": reason}).encode() + b"\n" + result


def _header(piece: Piece) -> dict[str, Any]:
    """Return what tells a result of this version and this plan from others. Costs may differ."""
    return {"version": VERSION, "number": piece.number, "count": piece.count, "spec": piece.spec}


def _read(step: Divisible, data: bytes, piece: Piece) -> Any:
    """Return the result of a piece, or the mark of its failure.

    Raises `ValueError` for bytes of another plan or version, or of anything else.
    """
    line, _, result = data.partition(b"\n")
    try:
        header = json.loads(line)
        reason = header.pop("failed")
    except (RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no result of a piece: {error}") from error
    if header != _header(piece):
        raise ValueError("a result of another plan or version")
    return step.read_piece(result) if reason is None else Mark("failed", str(reason))


def join_function(step: Divisible, folder: str, plans: Mapping[str, Sequence[Piece]]) -> TableFunction:
    """Return a table function that joins the stored results of rows. `plans` holds their pieces by uid.

    A result that is missing, or that cannot be parsed, is made again here.
    """

    def result(row: dict[str, Any], piece: Piece) -> Any:
        name = _piece_name(row["uid"], piece.number)
        try:
            return _read(step, storage.read_bytes(storage.join(folder, name)), piece)
        except (ValueError, FileNotFoundError) as error:
            log.warning(f"{name}: {error}; the piece is run again")
            return _read(step, _run(step, row, piece), piece)

    def join(row: dict[str, Any]) -> Mapping[str, Any] | Mark:
        results = []
        for piece in plans[row["uid"]]:
            results.append(result(row, piece))
            if isinstance(results[-1], Mark):
                return results[-1]
        return step.join(row, results)

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
    return [(i, _read_plan(_plan_uri(folder, uid))) for i, uid in enumerate(uids) if uid + PLAN_SUFFIX in plans]


def _read_plan(uri: str) -> list[Piece]:
    """Return the pieces of a stored plan. Raises `RunError` for a file that this run did not write."""
    try:
        plan = [Piece(**piece) for piece in storage.read_json(uri)]
        if [(piece.number, piece.count) for piece in plan] != [(i, len(plan)) for i in range(len(plan))]:
            raise ValueError("its numbers are wrong")
    except (ValueError, TypeError) as error:
        raise RunError(f"{uri}: is not a plan of pieces: {error}; remove it and run again") from error
    return plan


def _names(folder: str, suffix: str) -> set[str]:
    return {entry.uri.rsplit("/", 1)[-1] for entry in storage.list_files(folder, suffix)}


def _plan_uri(folder: str, uid: str) -> str:
    return storage.join(folder, uid + PLAN_SUFFIX)


def _piece_name(uid: str, number: int) -> str:
    return f"{uid}~{number}{PIECE_SUFFIX}"
