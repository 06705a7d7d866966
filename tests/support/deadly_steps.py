"""Steps for a cluster whose nodes and workers die: they take a while, carry large rows, and some rows kill."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from cluster.resources import Resources
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from tests.support.toy_steps import log_call


class Heavy(Step):
    """A step that is slow, whose worker is killed by a source with `word` in its name, and whose rows are large.

    It stands for `scan` as plain tasks, and for `encode` as a pool of workers.
    """

    rows_per_part = 3
    word: str = Field("", exclude=True)
    calls: str = Field("", exclude=True)
    pause_s: float = Field(0.0, exclude=True)
    payload_bytes: int = 0
    pooled: bool = False

    def reads(self) -> tuple[str, ...]:
        return ("source", "payload") if self.pooled else ("source",)

    def writes(self) -> tuple[pa.Field, ...]:
        if self.pooled:
            return (column("sum", pa.int64(), "bytes of the payload"),)
        return column("n_clips", pa.int64(), "clips"), column("payload", pa.binary(), "zeros")

    def resources(self) -> Resources:
        return Resources(pooled=self.pooled)

    def open(self, context: Context) -> TableFunction:
        def work(row: dict[str, Any]) -> dict[str, Any]:
            stem = Path(row["source"]).stem
            log_call(self.calls, row["uid"])
            time.sleep(self.pause_s)
            if self.word and self.word in stem:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.pooled:
                return {"sum": len(row["payload"])}
            return {"n_clips": int(stem.split("-")[1]), "payload": bytes(self.payload_bytes)}

        return lambda table: map_rows(table, self.writes(), work)
