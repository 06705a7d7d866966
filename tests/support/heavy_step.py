"""A step for a cluster whose nodes go and whose object store fills: it takes a while, and its rows are large.

The worker of a source `hungry-N.toy` runs out of memory.
"""

from __future__ import annotations

import ctypes
import resource
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from cluster.resources import Resources
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from tests.support.toy_steps import log_call


def run_out_of_memory() -> None:
    """End this process as a library in C++ does that gets no memory: 1 GB more than the process may have.

    The limit is that of this process alone, so the machine does not notice.
    """
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + (64 << 20), resource.RLIM_INFINITY))
    new = ctypes.CDLL("libstdc++.so.6")._Znwm
    new.argtypes = [ctypes.c_size_t]
    new(1 << 30)


class Heavy(Step):
    """A step that stands for `scan`, as plain tasks, and for `encode`, as a pool of workers that read what it wrote."""

    rows_per_part = 3
    pooled: bool = False
    payload_bytes: int = 0
    calls: str = Field("", exclude=True)
    pause_s: float = Field(0.0, exclude=True)
    hold: str = Field("", exclude=True)
    """File as long as which exists rows wait."""

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
            while self.hold and Path(self.hold).exists():
                time.sleep(0.05)
            if self.pooled:
                return {"size": len(row["payload"])}
            name, n_clips = Path(row["source"]).stem.split("-")
            if name == "hungry":
                run_out_of_memory()
            return {"n_clips": int(n_clips), "payload": bytes(self.payload_bytes)}

        return lambda table: map_rows(table, self.writes(), work)
