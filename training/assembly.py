"""From settings and a data set to what is trained, and from what was trained to its card."""

from __future__ import annotations

from collections import Counter

import pyarrow.compute as pc
import torch

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from cluster.plugins import build
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import AutoencoderSettings
from training.checkpoints.export import ModelCard
from training.data.loader import Dataset
from training.engine import Engine, open_engine
from training.sampling.provenance import version
from training.settings import TrainSettings
from training.step import Task


def task_of(settings: TrainSettings, dataset: Dataset, seed: int) -> Task:
    """What is trained on this data set."""
    return Task(
        model=settings.model,
        objective=settings.objective,
        conditioning=settings.conditioning,
        caption_drop=settings.caption_drop,
        null_text=dataset.null_text().to(torch.float32),
        time_factor=dataset.info.time_factor,
        seed=seed,
    )


def untrained(settings: TrainSettings, channels: int, text_dim: int, seed: int, device: torch.device) -> Engine:
    """An engine with the untrained model, the same on every rank and by every engine; the global random state is left as it was."""
    with torch.device("meta"):
        model = settings.model.build(channels, text_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_engine(model, settings, device)


def card_of(settings: TrainSettings, dataset: Dataset, text_dim: int, step: int, seed: int) -> ModelCard:
    """The card of a model trained for `step` steps; its weights' digest is filled in when they are written."""
    info = dataset.info
    table = dataset.table
    videos = [
        fps for fps, kind in zip(table["fps"].to_pylist(), table["kind"].to_pylist(), strict=True) if kind == "video"
    ]
    # Images have no frame rate of their own; without any video, 8 frames a second is as good as another.
    fps = Counter(videos).most_common(1)[0][0] if videos else 8.0
    return ModelCard(
        model=settings.model,
        objective=settings.objective,
        channels=info.channels,
        text_dim=text_dim,
        autoencoder=build(AUTOENCODERS, AutoencoderSettings, info.autoencoder),
        autoencoder_identity=info.autoencoder_identity,
        text_encoder=build(ENCODERS, TextEncoderSettings, info.text_encoder),
        text_encoder_identity=info.text_encoder_identity,
        fps=fps,
        source_side=float(
            pc.quantile(pc.sqrt(pc.multiply(table["source_width"], table["source_height"])), interpolation="lower")[
                0
            ].as_py()
        ),
        buckets=tuple(sorted(set(table["bucket"].to_pylist()))),
        step=step,
        seed=seed,
        data=info.fingerprint,
        weights="",
        worldloom=version(),
    )
