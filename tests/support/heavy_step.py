"""A step for a cluster whose nodes go and whose object store fills: it takes a while, and its rows are large."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from cluster.resources import Resources
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from tests.support.toy_steps import log_call


class Heavy(Step):
    """A step that stands for `scan`, as plain tasks, and for `encode`, as a pool of workers that read what it wrote."""

    rows_per_part = 3
    pooled: bool = False
    payload_bytes: int = 0
    calls: str = Field("", exclude=True)
    pause_s: float = Field(0.0, exclude=True)

    def reads(self) -> tuple[str, ...]:
        return ("source", "payload") if self.pooled else ("source",)

    def writes(self) -> tuple[pa.Field, ...]:
        if self.pooled:
            return (column("size", pa.int64(), "bytes of the payload"),)
        return column("n_clips", pa.int64(), "clips"), column("payload", pa.binary(), "zeros")

    def resources(self) -> Resources:
        return Resources(pooled=self.pooled)

    def open(self, context: Context) -> TableFunction:
        def work(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, row["uid"])
            time.sleep(self.pause_s)
            if self.pooled:
                return {"size": len(row["payload"])}
            n_clips = int(Path(row["source"]).stem.split("-")[1])
            return {"n_clips": n_clips, "payload": bytes(self.payload_bytes)}

        return lambda table: map_rows(table, self.writes(), work)
