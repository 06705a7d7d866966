"""The result of a finished training run. This module imports neither torch nor Ray, so looking for a result is fast."""

from __future__ import annotations

from dataclasses import dataclass

from cluster import storage
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.model_card import CARD, ModelCard, read_card
from training.settings import TrainSettings
from training.tracking.metrics import METRICS_FILE, loss_points, read_metrics


@dataclass(frozen=True)
class TrainResult:
    """The files and losses of a finished run."""

    export_uri: str
    """Folder with the model to sample from: `model.safetensors` and `model.json`."""
    checkpoint_uri: str
    """Newest checkpoint, from which a run with more steps resumes."""
    metrics_uri: str
    """`metrics.jsonl`, one line per step."""
    steps: int
    losses: tuple[float, ...]
    """Training loss of every step, those before a restart included."""
    validation: tuple[tuple[int, float], ...]
    """Steps taken and the validation loss after them."""
    export_step: int
    """Steps taken when the exported weights had their values."""


def find_result(settings: TrainSettings, run_uri: str) -> TrainResult | None:
    """Return the result of a run if it has finished `settings.steps` steps, or None."""
    export_uri = storage.join(run_uri, "export")
    newest = newest_checkpoint(run_uri)
    if (
        newest is None
        or newest.step < settings.steps
        or not storage.exists(storage.join(export_uri, CARD))
        or not _is_final(read_card(export_uri), settings, newest.step)
    ):
        return None
    train_points, validation_points = loss_points(read_metrics(run_uri))
    return TrainResult(
        export_uri=export_uri,
        checkpoint_uri=newest.uri,
        metrics_uri=storage.join(run_uri, METRICS_FILE),
        steps=newest.step,
        losses=tuple(loss for _, loss in train_points),
        validation=tuple(validation_points),
        export_step=read_card(export_uri).step,
    )


def _is_final(card: ModelCard, settings: TrainSettings, trained_steps: int) -> bool:
    """Return whether an export was written at the end of a run, of the step that the settings ask for."""
    return (card.trained_steps or card.step) >= trained_steps and card.export in (None, settings.export)
