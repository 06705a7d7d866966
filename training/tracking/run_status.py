"""Reads how far a training run is from its folder, while it is written or after. Imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster import listing, storage
from training.autoencoder_training.settings import REPORT
from training.checkpoints.checkpoint import Checkpoint, find_checkpoints
from training.checkpoints.model_card import CARD
from training.stopping import FAILURE_FILE
from training.tracking.metrics import METRICS_FILE, read_metrics, read_settings

RunState = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class RunStatus:
    """A training run: how far it is, and its newest measurements. None for what is not known."""

    name: str
    state: RunState
    step: int
    steps: int | None
    loss: float | None
    val_loss: float | None
    tokens_per_s: float | None
    record_age_s: float | None
    """Seconds since its records were last written. On an object store that is at each checkpoint."""
    checkpoints: tuple[int, ...]
    """Steps of the complete checkpoints."""
    problems: tuple[str, ...]
    """The error that ended it, and files that are damaged."""


def read_run(run_uri: str, now_s: float) -> RunStatus:
    """Return how far the run in a folder is. `now_s` is the time since the epoch, as `time.time` returns it."""
    problems = []
    try:
        records = read_metrics(run_uri)
    except ValueError as error:
        records = []
        problems.append(str(error))
    try:
        settings = read_settings(run_uri) or {}
    except ValueError as error:
        settings = {}
        problems.append(str(error))
    found = list(find_checkpoints(run_uri))
    problems += [str(checkpoint) for checkpoint in found if not isinstance(checkpoint, Checkpoint)]
    checkpoints = sorted(checkpoint.step for checkpoint in found if isinstance(checkpoint, Checkpoint))
    failure_uri = storage.join(run_uri, FAILURE_FILE)
    failure = storage.read_bytes(failure_uri).decode() if storage.exists(failure_uri) else ""
    problems += [f"{failure_uri}: {failure.partition(chr(10))[2]}"] if failure else []
    last = records[-1] if records else {}
    validated = [record["val_loss"] for record in records if "val_loss" in record]
    step, steps = max(last.get("step", 0), *checkpoints, 0), settings.get("steps")
    (entry,) = listing.look_up([storage.join(run_uri, METRICS_FILE)])
    exported = any(storage.exists(storage.join(run_uri, "export", file)) for file in (CARD, REPORT))
    done = steps is not None and step >= steps and exported
    return RunStatus(
        name=run_uri.rpartition("/")[2],
        state="finished" if done else "failed" if failure else "unfinished",
        step=step,
        steps=steps,
        loss=last.get("loss"),
        val_loss=validated[-1] if validated else None,
        tokens_per_s=last.get("tokens_per_s"),
        record_age_s=max(0.0, now_s - int(entry.version) / 1e9) if entry else None,
        checkpoints=tuple(checkpoints),
        problems=tuple(problems),
    )
