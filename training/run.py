"""Start a training run, on Ray Train's workers or in this process."""

from __future__ import annotations

from dataclasses import dataclass

from training.settings import TrainSettings


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left behind."""

    export_uri: str
    """Folder with the model to sample from: `model.safetensors` and `model.json`."""
    checkpoint_uri: str
    """Newest checkpoint, from which a longer run goes on."""
    metrics_uri: str
    """`metrics.jsonl`, one line a step."""
    steps: int
    losses: tuple[float, ...]
    """Training loss of every step of the whole run, those before a restart included."""
    validation: tuple[tuple[int, float], ...]
    """Steps done and the validation loss then."""


def train(settings: TrainSettings, manifest_uri: str, out_uri: str, *, seed: int = 0, distributed: bool = True) -> TrainResult:
    """Train a model on a data set of latents, going on from the newest checkpoint under `out_uri` if there is one.

    With `distributed`, Ray is connected already and `settings.workers` processes train with DeepSpeed; else this process
    trains alone, without Ray or DeepSpeed.
    """
    raise NotImplementedError
