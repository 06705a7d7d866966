"""What a run records: `metrics.jsonl` with one line a step, a drawing of the loss, and what trackers are told."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import storage
from cluster.telemetry import ProgressBar, log, progress
from training.tracking.loss_curve import loss_curve
from training.tracking.trackers import Name, Run, Tracker, open_trackers

FILE, CURVE, SETTINGS = "metrics.jsonl", "loss_curve.svg", "settings.json"

TAIL_BYTES = 65536
"""More than any record, also one of a validation over hundreds of buckets."""
FOLLOW_S = 0.5
"""How often the progress bar looks for a new record."""

Record = dict[str, Any]

SPEED = frozenset(
    (
        "step_s",
        "data_wait_s",
        "tokens_per_s",
        "tflops",
        "mfu",
        "hfu",
        "idle_share",
        "slowest_rank",
        "memory_gb",
        "host_memory_gb",
    )
)
"""Keys of a record that say how fast a step was, not what was learnt in it."""


def read_metrics(run_uri: str) -> list[Record]:
    """Records of a run by step; a last line cut off by a kill is left out."""
    uri = storage.join(run_uri, FILE)
    if not storage.exists(uri):
        return []
    # Every whole line ends in a line break, so what follows the last one was being written when the process died.
    *lines, _ = storage.read_bytes(uri).decode().split("\n")
    return [json.loads(line) for line in lines]


def read_settings(run_uri: str) -> Mapping[str, Any] | None:
    """What the last start of a run was told, seed and fingerprint of its data among it; None of a run that wrote none."""
    uri = storage.join(run_uri, SETTINGS)
    settings: Mapping[str, Any] | None = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None
    return settings


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

    def follow(bar: ProgressBar) -> None:
        shown_step = 0
        while True:
            last_look = ended.wait(FOLLOW_S)
            record = last_record(run_uri)
            if record is not None and record["step"] > shown_step:
                bar.advance(record["step"] - shown_step, note(record))
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


def note(record: Record) -> str:
    """A record in a few words."""
    share = f", MFU {record['mfu']:.1%}" if "mfu" in record else ""
    return f"loss {record['loss']:.4f}, {record['tokens_per_s']:,.0f} tokens/s{share}"


def tags(record: Record) -> dict[str, float]:
    """The numbers of a record as trackers group them: `train/loss_time/0.3`, `val/loss`, `speed/step_s`."""
    numbers = {key: value for key, value in record.items() if key != "step" and isinstance(value, int | float)}
    return {
        f"speed/{key}"
        if key in SPEED
        else f"val/{key.removeprefix('val_')}"
        if key.startswith("val_")
        else f"train/{key}": value
        for key, value in numbers.items()
    }


class Metrics:
    """Writer of a run's records, on rank 0; a context manager.

    A run that goes on drops the records after its checkpoint, so the file has each step once. On object stores, which cannot
    append, the file is written at each `flush`. A tracker that fails is left out from then on, with a warning: training does not end for it.
    """

    def __init__(
        self,
        run_uri: str,
        start_step: int,
        log_every: int,
        trackers: Sequence[Name] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`trackers` are told `settings`, which are written too, and the records of every `log_every`-th step and of steps with a validation."""
        self._uri = run_uri
        self._log_every = log_every
        self.records = [record for record in read_metrics(run_uri) if record["step"] <= start_step]
        self._rewrite()
        if settings:
            storage.write_bytes(storage.join(run_uri, SETTINGS), (json.dumps(settings, indent=1) + "\n").encode())
        self._local = storage.is_local(run_uri)
        self._trackers = open_trackers(trackers, Run(run_uri, start_step, settings or {}))

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def add(self, record: Record) -> None:
        """Record a step; `record["step"]` counts from 1."""
        self.records.append(record)
        if self._local:
            with storage.local_path(storage.join(self._uri, FILE)).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")
        if record["step"] % self._log_every == 0 or any(key.startswith("val_") for key in record):
            values = tags(record)
            self._tell(lambda tracker: tracker.log(record["step"], values))

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Show a picture `[H, W, 3]` of a step, before its record is added."""
        self._tell(lambda tracker: tracker.picture(step, name, picture))

    def flush(self) -> None:
        """Bring what people look at up to date: the drawing and, on an object store, the records."""
        if not self._local:
            self._rewrite()
        if self.records:
            storage.write_bytes(storage.join(self._uri, CURVE), loss_curve(*curves(self.records)).encode())

    def close(self, failed: bool = False) -> None:
        """The run ends; `failed` when that was before its last step."""
        self.flush()
        self._tell(lambda tracker: tracker.finish(failed))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                what(tracker)
            except Exception as error:  # each service has errors of its own, and none is worth a run of days
                log.warning(
                    f"{type(tracker).__name__} is told no more of this run: {type(error).__name__}: {error}; {FILE} goes on"
                )
                self._trackers.remove(tracker)

    def _rewrite(self) -> None:
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        storage.write_bytes(storage.join(self._uri, FILE), text.encode())


Points = list[tuple[int, float]]


def curves(records: list[Record]) -> tuple[Points, Points]:
    """(step, training loss) and (step, validation loss) of records."""
    train = [(record["step"], record["loss"]) for record in records]
    validation = [(record["step"], record["val_loss"]) for record in records if "val_loss" in record]
    return train, validation
