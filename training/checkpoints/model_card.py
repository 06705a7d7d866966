"""The card of an exported model, `model.json`. This module imports neither torch nor Ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from cluster import config, storage
from cluster.config import Settings
from cluster.plugins import PluginField
from training.adapters.settings import ADAPTER_CONFIG, AdapterSettings
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import AutoencoderSettings
from training.model import FOLDER as MODELS
from training.model import ModelSettings
from training.objective import FOLDER as OBJECTIVES
from training.objective import ObjectiveSettings

WEIGHTS, CARD = "model.safetensors", "model.json"
"""The two files of an export."""
ADAPTER_WEIGHTS, NULL_TEXT_FILE = "adapter.safetensors", "null_text.safetensors"
"""Files of an adapter's export in place of `model.safetensors`: its weights, and the null caption's embedding."""
AUTOENCODER = "autoencoder.safetensors"
"""File of the autoencoder's weights in a compact export."""
INSIDE = "./"
"""Prefix of paths in a card that are relative to its folder."""


class AdapterCard(AdapterSettings):
    """The description of exported weights that are an adapter of others."""

    base: str = Field(description="Weights that the adapter changes, as `train.init` names them.")
    base_identity: str = Field(description="Identity of these weights.")


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
    adapter: AdapterCard | None = Field(
        None, description="Adapter that the weights are, whose file is adapter.safetensors; null for a whole model."
    )
    seed: int = Field(description="Seed of the run.")
    data: str = Field(description="Fingerprint of the training data.")
    weights: str = Field(description="Digest of the file of weights.")
    made_from: str | None = Field(
        None, description="Digest of the weights that `export-model` made these from, the same model in fewer bits."
    )
    worldloom: str = Field(description="Version of worldloom that wrote this file.")

    @property
    def identity(self) -> str:
        """Identity of the model, which a compact copy of it shares."""
        return self.made_from or self.weights

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the export besides the card; the first has the weights."""
        return (WEIGHTS,) if self.adapter is None else (ADAPTER_WEIGHTS, ADAPTER_CONFIG, NULL_TEXT_FILE)

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
