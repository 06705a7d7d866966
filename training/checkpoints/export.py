"""The export of a finished model: two files, `model.safetensors` and `model.json`, which need nothing else
of the run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cluster import storage
from training.checkpoints.model_card import CARD, WEIGHTS, ModelCard, read_card
from training.data.footer import DamagedError
from training.network import VideoModel

EXPORT_AGAIN = (
    "copy the folder again, or remove it and run `worldloom train`, which exports a finished run from its checkpoint"
)
NULL_TEXT = "null_text"
"""Name of the null caption's embedding among the tensors."""
RAW_PREFIX, AVERAGED_PREFIX = "raw.", "ema."
"""Prefixes of the parameters' names among the tensors, for the weights of the last step and for their averages."""


def write_export(
    uri: str, raw: Mapping[str, Tensor], averaged: Mapping[str, Tensor], null_text: Tensor, card: ModelCard
) -> ModelCard:
    """Write both files, first the weights and then the card with their digest; return the card as written."""
    tensors = {f"{RAW_PREFIX}{name}": value.contiguous() for name, value in raw.items()}
    tensors |= {f"{AVERAGED_PREFIX}{name}": value.contiguous() for name, value in averaged.items()}
    data = save_tensors(tensors | {NULL_TEXT: null_text.contiguous()})
    card = card.model_copy(update={"weights": storage.digest(data)})
    storage.write_bytes(storage.join(uri, WEIGHTS), data)
    storage.write_bytes(storage.join(uri, CARD), card.to_bytes())
    return card


def model_from_card(card: ModelCard, weights: Mapping[str, Tensor]) -> VideoModel:
    """Return the model of a card in evaluation mode. It uses the tensors of `weights` themselves, without a copy or
    initialisation.
    """
    with torch.device("meta"):
        model = card.model.build(card.channels, card.text_dim)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def read_weights(uri: str, card: ModelCard) -> bytes:
    """Return the content of an export's file of weights.

    Raises `DamagedError` if the file is missing or does not have the digest in the card.
    """
    weights_uri = storage.join(uri, card.files[0])
    if not storage.exists(weights_uri):
        raise DamagedError(f"{weights_uri}: is missing; {EXPORT_AGAIN}")
    data = storage.read_bytes(weights_uri)
    if storage.digest(data) != card.weights:
        raise DamagedError(f"{weights_uri} is not the file that {CARD} was written for; {EXPORT_AGAIN}")
    return data


def read_export(uri: str, averaged: bool = True) -> tuple[ModelCard, VideoModel, Tensor]:
    """Return the card, the model on the CPU in evaluation mode, and the null caption's embedding `[N, E]`.

    The model has the averaged weights in fp32, or the raw ones if not `averaged`. Raises `DamagedError` if the file of
    weights is missing or does not have the digest in the card, and `ValueError` for raw weights of a compact export.
    """
    card = read_card(uri)
    data = read_weights(uri, card)
    tensors = load_tensors(data)
    prefix = AVERAGED_PREFIX if averaged else RAW_PREFIX
    weights = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
    if not weights:
        raise ValueError(f"{uri}: is a compact export, which has the averaged weights alone")
    return card, model_from_card(card, weights), tensors[NULL_TEXT]
