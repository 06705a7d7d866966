"""The card of an exported model, `model.json`. This module imports neither torch nor Ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from cluster import config, storage
from cluster.config import Settings
from cluster.plugins import PluginField
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import AutoencoderSettings
from training.model import FOLDER as MODELS
from training.model import ModelSettings
from training.objective import FOLDER as OBJECTIVES
from training.objective import ObjectiveSettings

WEIGHTS, CARD = "model.safetensors", "model.json"
"""The two files of an export."""
AUTOENCODER = "autoencoder.safetensors"
"""File of the autoencoder's weights in a compact export."""
INSIDE = "./"
"""Prefix of paths in a card that are relative to its folder."""


class ModelCard(Settings):
    """The description of exported weights: everything that sampling needs to know of their training."""

    version: int = Field(1, ge=1, le=1, description="Version of this file's format.")
    model: Annotated[ModelSettings, PluginField(MODELS, ModelSettings)]
    objective: Annotated[ObjectiveSettings, PluginField(OBJECTIVES, ObjectiveSettings)]
    channels: int = Field(description="Channels of the latents.")
    text_dim: int = Field(description="Width of text tokens.")
    autoencoder: Annotated[AutoencoderSettings, PluginField(AUTOENCODERS, AutoencoderSettings)]
    autoencoder_identity: str
    text_encoder: Annotated[TextEncoderSettings, PluginField(ENCODERS, TextEncoderSettings)]
    text_encoder_identity: str
    fps: float = Field(description="Most common frames per second of training videos; the default for sampling.")
    source_side: float = Field(
        gt=0,
        description="Side in pixels of the square with a source's area, median over sources; the default for sampling.",
    )
    buckets: tuple[str, ...] = Field(description="Shapes of the training samples, WIDTHxHEIGHTxFRAMES.")
    step: int = Field(description="Optimizer steps taken when the weights had these values.")
    trained_steps: int | None = Field(None, description="Optimizer steps of the whole run; null while it trains.")
    export: Literal["best", "last"] | None = Field(None, description="The setting that chose the step; likewise.")
    val_loss: float | None = Field(
        None, description="Validation loss of the averaged weights; null if it was not measured."
    )
    init: str | None = Field(None, description="Weights that training started from; null for random ones.")
    seed: int = Field(description="Seed of the run.")
    data: str = Field(description="Fingerprint of the training data.")
    weights: str = Field(description="Digest of model.safetensors.")
    worldloom: str = Field(description="Version of worldloom that wrote this file.")

    def to_bytes(self) -> bytes:
        """Return the content of `model.json`."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def read_card(uri: str) -> ModelCard:
    """Return the card of an export. Raises `ValueError` if there is none, or if it names a plug-in that does not exist
    here.
    """
    card_uri = storage.join(uri, CARD)
    if not storage.exists(card_uri):
        raise ValueError(f"{uri}: there is no {CARD}; name the export folder of a finished training run")
    document = config.decode_document(storage.read_bytes(card_uri), card_uri)
    _resolve_inside(document.data, uri)
    return config.parse(ModelCard, document)


def _resolve_inside(data: Any, uri: str) -> None:
    """Replace the path of the autoencoder's weights in a card's data if it is relative to the card's folder."""
    autoencoder = data.get("autoencoder") if isinstance(data, dict) else None
    if isinstance(autoencoder, dict) and str(weights := autoencoder.get("weights")).startswith(INSIDE):
        autoencoder["weights"] = storage.join(uri, str(weights).removeprefix(INSIDE))
