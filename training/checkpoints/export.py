"""The finished model as two files that need nothing else of the run: `model.safetensors` and `model.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from cluster import config, storage
from cluster.config import Settings
from cluster.plugins import Chosen
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import AutoencoderSettings
from training.model import FOLDER as MODELS
from training.model import ModelSettings
from training.network import VideoModel
from training.objective import FOLDER as OBJECTIVES
from training.objective import ObjectiveSettings

WEIGHTS, CARD = "model.safetensors", "model.json"
NULL_TEXT = "null_text"


class ModelCard(Settings):
    """`model.json`: what the weights are, and all that sampling needs to know of how they were trained."""

    version: int = Field(1, ge=1, le=1, description="Version of this file's shape.")
    model: Annotated[ModelSettings, Chosen(MODELS, ModelSettings)]
    objective: Annotated[ObjectiveSettings, Chosen(OBJECTIVES, ObjectiveSettings)]
    channels: int = Field(description="Latent channels.")
    text_dim: int = Field(description="Width of text tokens.")
    autoencoder: Annotated[AutoencoderSettings, Chosen(AUTOENCODERS, AutoencoderSettings)]
    autoencoder_identity: str
    text_encoder: Annotated[TextEncoderSettings, Chosen(ENCODERS, TextEncoderSettings)]
    text_encoder_identity: str
    fps: float = Field(description="Frames a second of most training videos; the default when sampling.")
    source_side: float = Field(
        gt=0,
        description="Median side of the squares with the areas of the sources, in pixels; the default when sampling.",
    )
    buckets: tuple[str, ...] = Field(description="Shapes trained on, WIDTHxHEIGHTxFRAMES.")
    step: int = Field(description="Optimizer steps taken.")
    seed: int = Field(description="Seed of the run.")
    data: str = Field(description="Fingerprint of the training data.")
    weights: str = Field(description="Digest of model.safetensors.")
    worldloom: str = Field(description="Version of worldloom that wrote this.")


def write_export(
    uri: str, raw: Mapping[str, Tensor], averaged: Mapping[str, Tensor], null_text: Tensor, card: ModelCard
) -> ModelCard:
    """Write both files; the card, which seals the digest of the weights, comes last. Returns the card as written."""
    tensors = {f"raw.{name}": value.contiguous() for name, value in raw.items()}
    tensors |= {f"ema.{name}": value.contiguous() for name, value in averaged.items()}
    data = save_tensors(tensors | {NULL_TEXT: null_text.contiguous()})
    sealed = card.model_copy(update={"weights": storage.digest(data)})
    storage.write_bytes(storage.join(uri, WEIGHTS), data)
    storage.write_bytes(storage.join(uri, CARD), (sealed.model_dump_json(indent=2) + "\n").encode())
    return sealed


def read_card(uri: str) -> ModelCard:
    """The card of an export. Raises `ValueError` when there is none, or a part it names is unknown here."""
    card_uri = storage.join(uri, CARD)
    if not storage.exists(card_uri):
        raise ValueError(f"{uri}: no {CARD} there; give the export folder of a finished training run")
    return config.parse(ModelCard, config.parse_document(storage.read_bytes(card_uri).decode(), card_uri))


def model_of(card: ModelCard, weights: Mapping[str, Tensor]) -> VideoModel:
    """The model with these weights themselves, in evaluation mode: nothing is drawn that would be replaced, and nothing is copied."""
    with torch.device("meta"):
        model = card.model.build(card.channels, card.text_dim)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def read_export(uri: str, averaged: bool = True) -> tuple[ModelCard, VideoModel, Tensor]:
    """Card, model on the CPU in evaluation mode, and the null caption's embedding `[N, E]`.

    Raises `ValueError` when the weights are not the ones that the card seals.
    """
    card = read_card(uri)
    data = storage.read_bytes(storage.join(uri, WEIGHTS))
    if storage.digest(data) != card.weights:
        raise ValueError(f"{uri}: {WEIGHTS} is not the file that {CARD} was written for; export the run again")
    tensors = load_tensors(data)
    prefix = "ema." if averaged else "raw."
    model = model_of(
        card, {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    )
    return card, model, tensors[NULL_TEXT]
