"""Cards and exports of tiny models that were never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from captioning.encoder import NULL_CAPTION, TextEncoderSettings
from captioning.encoders.hashing import Hashing
from training.autoencoders.linear import Linear
from training.checkpoints.export import write_export
from training.checkpoints.model_card import ModelCard
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching


def untrained_card(text_encoder: TextEncoderSettings | None = None, text_dim: int = 32, **changes: Any) -> ModelCard:
    """Return the card of a `dit` on latents of `linear16`, by default with the text encoder `hashing`; `changes`
    replace its fields.
    """
    text_encoder = text_encoder or Hashing()
    card = ModelCard(
        model=DiT(depth=1, dim=32, heads=2),
        objective=FlowMatching(),
        channels=16,
        text_dim=text_dim,
        autoencoder=Linear(),
        autoencoder_identity=Linear().identity(),
        text_encoder=text_encoder,
        text_encoder_identity=text_encoder.identity(),
        fps=8.0,
        source_side=64.0,
        buckets=("48x32x9",),
        step=1,
        seed=0,
        data="none",
        weights="",
        worldloom="0",
    )
    return card.model_copy(update=changes)


def write_untrained_export(folder: Path) -> str:
    """Write an export with random weights, none of them zero, and return its URI."""
    encoder = Hashing().open()
    card = untrained_card(text_dim=encoder.dim)
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(value.shape, generator=rng)
        for name, value in card.model.build(card.channels, card.text_dim).state_dict().items()
    }
    averaged = {name: value.clone() for name, value in weights.items()}
    null_text = torch.from_numpy(encoder.encode([NULL_CAPTION])[0].tokens)
    write_export(str(folder), weights, averaged, null_text, card)
    return str(folder)
