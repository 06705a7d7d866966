"""Steps that need no video: a source `NAME-N.toy` has N clips; the names `broken`, `crash` and `bad` cause errors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from cluster.resources import Resources
from cluster.storage import digest
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import (
    FATE_FIELDS,
    Context,
    Divisible,
    Expand,
    Global,
    Mark,
    Piece,
    RunError,
    Step,
    TableFunction,
    column,
    map_rows,
)


def log_call(path: str | None, uid: str) -> None:
    """Append a line to a file that counts calls, in whatever process; do nothing without a path."""
    if path:
        with Path(path).open("a") as handle:
            handle.write(uid + "\n")


class Measure(Step):
    """A step that reads the number of clips from a file's name. `broken` raises, and `crash` kills its process."""

    name: str = "measure"
    rows_per_part = 4
    calls: str | None = Field(None, exclude=True)
    scale: float = 1.0

    def reads(self) -> tuple[str, ...]:
        return ("source",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("n_clips", pa.int64(), "clips"), column("size", pa.float64(), "scaled size"))

    def open(self, context: Context) -> TableFunction:
        def measure(row: dict[str, Any]) -> dict[str, Any] | Mark:
            log_call(self.calls, row["uid"])
            stem = Path(row["source"]).stem
            if stem.startswith("broken"):
                raise OSError("cannot be decoded")
            if stem.startswith("crash"):
                os._exit(9)
            clips = int(stem.split("-")[1])
            return {"n_clips": clips, "size": clips * self.scale}

        return lambda table: map_rows(table, self.writes(), measure)


class Split(Expand):
    """A step that expands a source into its clips; a source of 0 clips is dropped."""

    name: str = "split"

    def reads(self) -> tuple[str, ...]:
        return ("n_clips",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (
            column("uid", pa.string(), ""),
            column("source_uid", pa.string(), ""),
            column("clip_index", pa.int32(), ""),
            column("duration_s", pa.float64(), ""),
            column("number", pa.float64(), ""),
        )

    def consumes(self) -> tuple[str, ...]:
        return ("n_clips",)

    def uid_columns(self) -> tuple[str, ...]:
        return "uid", "source_uid", "clip_index", "duration_s", "number"

    def expand(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | Mark:
        if row["n_clips"] == 0:
            return Mark("dropped", "no clips")
        uids = [digest(row["uid"], str(i)) for i in range(row["n_clips"])]
        return [
            {"uid": uid, "source_uid": row["uid"], "clip_index": i, "duration_s": 36.0, "number": float(i)}
            for i, uid in enumerate(uids)
        ]


class Score(Step):
    """A step that writes a power of each clip's number."""

    name: str = "score"
    calls: str | None = Field(None, exclude=True)
    pooled: bool = False
    power: float = 2.0

    def reads(self) -> tuple[str, ...]:
        return ("number",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("score", pa.float64(), "number to a power"),)

    def resources(self) -> Resources:
        return Resources(pooled=self.pooled)

    def open(self, context: Context) -> TableFunction:
        def score(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, row["uid"])
            return {"score": row["number"] ** self.power}

        return lambda table: map_rows(table, self.writes(), score)


class Pick(Global):
    """A step that keeps one of all clips with the same number: the one with the smallest uid."""

    name: str = "pick"

    def reads(self) -> tuple[str, ...]:
        return ("number",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("cluster", pa.string(), ""),)

    def solve(self, rows: Rows) -> pa.Table:
        return rows.grouped(
            "number",
            partial(same_number, schema=pa.schema([pa.field("uid", pa.string()), *self.writes(), *FATE_FIELDS])),
        ).collect()

    def defaults(self, rows: pa.Table) -> pa.Table:
        return pa.table({"cluster": rows["uid"]})


def same_number(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the decisions of `Pick` about all rows that share their numbers."""
    groups: dict[float, list[str]] = {}
    for row in rows.sort_by("uid").to_pylist():
        groups.setdefault(row["number"], []).append(row["uid"])
    solved = []
    for first, *others in groups.values():
        if others:
            solved.append({"uid": first, "cluster": first, "fate": "kept"})
        solved += [{"uid": uid, "cluster": first, "fate": "duplicate", "fate_reason": "same number"} for uid in others]
    return pa.Table.from_pylist(solved, schema)


class LongMeasure(Divisible):
    """A step like `Measure` that measures a source of N > 1 clips in N pieces. `bad` fails in its last piece.

    It raises `RunError` before call `stop_at`.
    """

    name: str = "long_measure"
    rows_per_part = 4
    calls: str | None = Field(None, exclude=True)
    stop_at: int | None = Field(None, exclude=True)

    def reads(self) -> tuple[str, ...]:
        return ("source",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("n_clips", pa.int64(), "clips"),)

    def open(self, context: Context) -> TableFunction:
        def measure(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, f"{Path(row['source']).stem}:whole")
            return {"n_clips": int(Path(row["source"]).stem.split("-")[1])}

        return lambda table: map_rows(table, self.writes(), measure)

    def divide(self, row: Mapping[str, Any]) -> Sequence[Piece]:
        count = int(Path(row["source"]).stem.split("-")[1])
        return [Piece(i, count, {"adds": 1}, float(count)) for i in range(count)] if count > 1 else ()

    def run_piece(self, row: Mapping[str, Any], piece: Piece) -> bytes:
        stem = Path(row["source"]).stem
        if self.stop_at is not None and self.calls and len(Path(self.calls).read_text().split()) >= self.stop_at:
            raise RunError("the disk is full")
        log_call(self.calls, f"{stem}:{piece.number}")
        if stem.startswith("bad") and piece.number == piece.count - 1:
            raise OSError("cannot be decoded")
        if stem.startswith("crash"):
            os._exit(9)
        return str(piece.spec["adds"]).encode()

    def read_piece(self, data: bytes) -> int:
        return int(data)

    def join(self, row: Mapping[str, Any], results: Sequence[int]) -> Mapping[str, Any]:
        log_call(self.calls, f"{Path(row['source']).stem}:join")
        return {"n_clips": sum(results)}
