"""What a finished training run left behind. Knows no Ray, so that looking for a result does not wait for it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster import storage
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.model_card import CARD, read_card
from training.settings import TrainSettings
from training.tracking.metrics import CURVE, FILE, curves, read_metrics


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left behind."""

    export_uri: str
    """Folder with the model to sample from: `model.safetensors` and `model.json`."""
    checkpoint_uri: str
    """Newest checkpoint, from which a run of more steps goes on."""
    metrics_uri: str
    """`metrics.jsonl`, one line a step."""
    curve_uri: str
    """`loss_curve.svg`."""
    steps: int
    losses: tuple[float, ...]
    """Training loss of every step of the whole run, those before a restart included."""
    validation: tuple[tuple[int, float], ...]
    """Steps done and the validation loss then."""


def result(settings: TrainSettings, run_uri: str) -> TrainResult | None:
    """What a run left behind if it is finished for these settings, else None."""
    export_uri = storage.join(run_uri, "export")
    newest = newest_checkpoint(run_uri)
    if (
        newest is None
        or newest.step < settings.steps
        or not storage.exists(storage.join(export_uri, CARD))
        or read_card(export_uri).step < newest.step
    ):
        return None
    train_points, validation = curves(read_metrics(run_uri))
    return TrainResult(
        export_uri=export_uri,
        checkpoint_uri=newest.uri,
        metrics_uri=storage.join(run_uri, FILE),
        curve_uri=storage.join(run_uri, CURVE),
        steps=newest.step,
        losses=tuple(loss for _, loss in train_points),
        validation=tuple(validation),
    )
