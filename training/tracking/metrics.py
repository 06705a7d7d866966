"""The records of a training run: `metrics.jsonl` with one line per step, and the values that trackers receive."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from cluster import storage
from cluster.arrays import UInt8Array
from cluster.metrics import OF_RECORDS
from cluster.telemetry import ProgressBar, log, progress
from training.tracking.trackers import TrackedRun, Tracker, TrackerName, open_trackers

METRICS_FILE, SETTINGS_FILE = "metrics.jsonl", "settings.json"
PREVIEWS_FOLDER = "previews"
"""Names in the folder of a run."""

MAX_RECORD_BYTES = 65536
"""More than the length of any record, even of a validation over hundreds of buckets."""
POLL_S = 0.5
"""Seconds between two looks of the progress bar at the newest record."""

Record = dict[str, Any]
"""Values of one step by name; `step` counts from 1."""

Points = list[tuple[int, float]]
"""Steps and values of a curve."""

SPEED_KEYS = frozenset(
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
"""Keys of a record for the speed and memory of a step, which trackers show apart from what was learnt."""

MEASURED_PREFIXES = ("val_", "score_")
"""Prefixes of keys that only some steps have: losses of the validation split, and scores of generated clips."""


def read_metrics(run_uri: str) -> list[Record]:
    """Return the records of a run by step, without a last line that a kill has cut off.

    Raises `ValueError` with the number of a line that is no record.
    """
    uri = storage.join(run_uri, METRICS_FILE)
    if not storage.exists(uri):
        return []
    # Every complete line ends in a line break. Text after the last one was being written when the process died.
    *lines, _ = storage.read_bytes(uri).decode(errors="replace").split("\n")
    return [_parse_record(line, f"{uri}:{number}") for number, line in enumerate(lines, start=1)]


def _parse_record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError(f"{where}: is damaged: no record of a step, {line[:40]!r}; remove this line")
    return record


def read_settings(run_uri: str) -> Mapping[str, Any] | None:
    """Return the settings of a run's last start, with its seed and the fingerprint of its data; None if
    there are none.

    Raises `ValueError` with the file's name if it is damaged.
    """
    uri = storage.join(run_uri, SETTINGS_FILE)
    if not storage.exists(uri):
        return None
    settings = storage.read_json(uri)
    if not isinstance(settings, dict) or type(settings.get("steps", 0)) is not int:
        raise ValueError(f"{uri}: is damaged: no settings of a training; remove it, and the next start writes it")
    return settings


def last_records(run_uri: str) -> list[Record]:
    """Return the newest records of a run, at least one if there are any, reading only the end of the file."""
    uri = storage.join(run_uri, METRICS_FILE)
    if not storage.exists(uri):
        return []
    with storage.open_input(uri) as handle:
        start = max(0, handle.seek(0, 2) - MAX_RECORD_BYTES)
        handle.seek(start)
        *lines, _ = handle.read().split(b"\n")
    # The first line may begin before the part that was read.
    return [json.loads(line) for line in (lines[1:] if start else lines)]


@contextlib.contextmanager
def progress_bar(run_uri: str, steps: int) -> Iterator[None]:
    """Show a progress bar inside the block, which follows the records that another process or thread writes."""
    ended = threading.Event()

    def follow(bar: ProgressBar) -> None:
        shown_step = 0
        validation = dict(loss_points(read_metrics(run_uri))[1])
        while True:
            is_last = ended.wait(POLL_S)
            records = last_records(run_uri)
            if records and records[-1]["step"] > shown_step:
                new = [record for record in records if record["step"] > shown_step]
                validation |= loss_points(new)[1]
                bar.advance(new[-1]["step"] - shown_step, progress_text(new[-1], validation))
                shown_step = new[-1]["step"]
            if is_last:
                return

    with progress("train", steps) as bar:
        follower = threading.Thread(target=follow, args=(bar,), name="training-progress", daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def progress_text(record: Record, validation: Mapping[int, float] | None = None) -> str:
    """Return a record's loss, the newest and the lowest validation loss, throughput and MFU in a few words.

    `validation` has the validation losses so far by step.
    """
    losses = f"loss {record['loss']:.4f}"
    if validation:
        last_step, best_step = max(validation), min(validation, key=validation.__getitem__)
        losses += f", validation {validation[last_step]:.4f}"
        losses += f" (best {validation[best_step]:.4f} at step {best_step})" if best_step < last_step else ""
    share = f", MFU {record['mfu']:.1%}" if "mfu" in record else ""
    return f"{losses}, {record['tokens_per_s']:,.0f} tokens/s{share}"


def tracker_values(record: Record) -> dict[str, float]:
    """Return the numbers of a record by the tags of trackers: `train/loss_time/0.3`, `val/loss`, `speed/step_s`."""
    numbers = {key: value for key, value in record.items() if key != "step" and isinstance(value, int | float)}
    return {_tag(key): value for key, value in numbers.items()}


def _tag(key: str) -> str:
    if key in SPEED_KEYS:
        return f"speed/{key}"
    for prefix in MEASURED_PREFIXES:
        if key.startswith(prefix):
            return f"{prefix.rstrip('_')}/{key.removeprefix(prefix)}"
    return f"train/{key}"


class Metrics:
    """The writer of a run's records, on rank 0; a context manager.

    A run that resumes drops the records after its checkpoint, so the file has each step once. Object stores cannot
    append, so there the file is written at each `flush`. If a tracker fails, a warning is logged and it gets no further
    records; training continues.
    """

    def __init__(
        self,
        run_uri: str,
        start_step: int,
        log_every: int,
        trackers: Sequence[TrackerName] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the records of a run that starts after `start_step` steps.

        `settings` are written to a file and sent to the trackers. These also get the record of every `log_every`-th
        step and of steps with a validation or with scores.
        """
        self._uri, self._name = run_uri, run_uri.rpartition("/")[2]
        self._log_every = log_every
        self.records = [record for record in read_metrics(run_uri) if record["step"] <= start_step]
        self._rewrite()
        if settings:
            storage.write_bytes(storage.join(run_uri, SETTINGS_FILE), (json.dumps(settings, indent=1) + "\n").encode())
        self._is_local = storage.is_local(run_uri)
        self._trackers = open_trackers(trackers, TrackedRun(run_uri, start_step, settings or {}))

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def add(self, record: Record) -> None:
        """Record a step; `record["step"]` counts from 1."""
        self.records.append(record)
        for key in OF_RECORDS.keys() & record.keys():
            OF_RECORDS[key].record(record[key], run=self._name)
        if self._is_local:
            with storage.local_path(storage.join(self._uri, METRICS_FILE)).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")
        if record["step"] % self._log_every == 0 or any(key.startswith(MEASURED_PREFIXES) for key in record):
            values = tracker_values(record)
            self._send(lambda tracker: tracker.log(record["step"], values))

    def add_image(self, name: str, image: UInt8Array, step: int) -> None:
        """Send an image `[H, W, 3]` of a step to the trackers; call it before the step's record is added."""
        self._send(lambda tracker: tracker.log_image(step, name, image))

    def flush(self) -> None:
        """Write the records to an object store; a local file has them already."""
        if not self._is_local:
            self._rewrite()

    def close(self, failed: bool = False) -> None:
        """End the run; `failed` if that is before its last step."""
        self.flush()
        self._send(lambda tracker: tracker.finish(failed))

    def _send(self, call: Callable[[Tracker], None]) -> None:
        """Call every tracker, and drop those that fail."""
        for tracker in tuple(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # each service has its own errors, and none should end a run of days
                log.warning(
                    f"{type(tracker).__name__} gets no more records of this run: {type(error).__name__}: {error}; "
                    f"{METRICS_FILE} continues"
                )
                self._trackers.remove(tracker)

    def _rewrite(self) -> None:
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        storage.write_bytes(storage.join(self._uri, METRICS_FILE), text.encode())


def loss_points(records: Sequence[Record]) -> tuple[Points, Points]:
    """Return (step, training loss) and (step, validation loss) of records."""
    train = [(record["step"], record["loss"]) for record in records]
    validation = [(record["step"], record["val_loss"]) for record in records if "val_loss" in record]
    return train, validation
