"""What a run records: `metrics.jsonl` with one line a step, TensorBoard, and a drawing of the loss."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import storage
from cluster.telemetry import Bar, progress
from training.curve import loss_curve

FILE, CURVE, TENSORBOARD = "metrics.jsonl", "loss_curve.svg", "tensorboard"

TAIL_BYTES = 8192
"""More than any record."""
FOLLOW_S = 0.5
"""How often the progress bar looks for a new record."""

Record = dict[str, Any]


def read_metrics(run_uri: str) -> list[Record]:
    """Records of a run by step; a last line cut off by a kill is left out."""
    uri = storage.join(run_uri, FILE)
    if not storage.exists(uri):
        return []
    # Every whole line ends in a line break, so what follows the last one was being written when the process died.
    *lines, _ = storage.read_bytes(uri).decode().split("\n")
    return [json.loads(line) for line in lines]


def last_record(run_uri: str) -> Record | None:
    """The newest record of a run, from the end of its file alone; None before the first."""
    uri = storage.join(run_uri, FILE)
    if not storage.exists(uri):
        return None
    with storage.open_input(uri) as handle:
        handle.seek(max(0, handle.seek(0, 2) - TAIL_BYTES))
        *lines, _ = handle.read().decode().split("\n")
    record: Record | None = json.loads(lines[-1]) if lines else None
    return record


@contextlib.contextmanager
def shown(run_uri: str, steps: int) -> Iterator[None]:
    """A progress bar for the length of the block, which follows the records that another process or thread writes."""
    ended = threading.Event()

    def follow(bar: Bar) -> None:
        shown_step = 0
        while True:
            last_look = ended.wait(FOLLOW_S)
            record = last_record(run_uri)
            if record is not None and record["step"] > shown_step:
                bar.advance(record["step"] - shown_step, f"loss {record['loss']:.4f}, {record['tokens_per_s']:,.0f} tokens/s")
                shown_step = record["step"]
            if last_look:
                return

    with progress("train", steps) as bar:
        follower = threading.Thread(target=follow, args=(bar,), name="training-progress", daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


class Metrics:
    """Writer of a run's records, on rank 0.

    A run that goes on drops the records after its checkpoint, so the file has each step once. On object stores, which cannot
    append, the file is written at each `flush`, and TensorBoard, which needs local files, is left out.
    """

    def __init__(self, run_uri: str, start_step: int, log_every: int) -> None:
        self._uri = run_uri
        self._log_every = log_every
        self.records = [record for record in read_metrics(run_uri) if record["step"] <= start_step]
        self._rewrite()
        self._local = storage.is_local(run_uri)
        from torch.utils.tensorboard import SummaryWriter  # takes a third of a second, which whoever only reads metrics need not wait for

        self._writer = SummaryWriter(str(storage.local_path(run_uri) / TENSORBOARD), purge_step=start_step + 1) if self._local else None

    def add(self, record: Record) -> None:
        """Record a step; `record["step"]` counts from 1."""
        self.records.append(record)
        if self._local:
            with storage.local_path(storage.join(self._uri, FILE)).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")
        if self._writer and (record["step"] % self._log_every == 0 or "val_loss" in record):
            for key, value in record.items():
                if key != "step":
                    self._writer.add_scalar(f"train/{key}" if key != "val_loss" else "val/loss", value, record["step"])

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Show a picture `[H, W, 3]` on TensorBoard."""
        if self._writer:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring what people look at up to date: the drawing, TensorBoard and, on an object store, the records."""
        if self._writer:
            self._writer.flush()
        else:
            self._rewrite()
        if self.records:
            storage.write_bytes(storage.join(self._uri, CURVE), loss_curve(*curves(self.records)).encode())

    def close(self) -> None:
        self.flush()
        if self._writer:
            self._writer.close()

    def _rewrite(self) -> None:
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        storage.write_bytes(storage.join(self._uri, FILE), text.encode())


Points = list[tuple[int, float]]


def curves(records: list[Record]) -> tuple[Points, Points]:
    """(step, training loss) and (step, validation loss) of records."""
    train = [(record["step"], record["loss"]) for record in records]
    validation = [(record["step"], record["val_loss"]) for record in records if "val_loss" in record]
    return train, validation
