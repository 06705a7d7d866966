"""The export of an adapter: its averaged weights and a file of peft, beside the card of the model that it makes.

The names of the weights are those of peft and diffusers. The weights of the base are not in it: the card names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cluster import storage
from training.adapters.lora import file_name, lora_config, merge_adapter
from training.checkpoints.export import EXPORT_AGAIN, NULL_TEXT, model_from_card, read_weights
from training.checkpoints.initial_weights import InitialWeights, find_initial_weights
from training.checkpoints.model_card import ADAPTER_CONFIG, CARD, NULL_TEXT_FILE, AdapterCard, ModelCard, read_card
from training.data.footer import DamagedError
from training.network import VideoModel


def write_adapter_export(uri: str, averaged: Mapping[str, Tensor], null_text: Tensor, card: ModelCard) -> ModelCard:
    """Write the files of an adapter, first the weights and at last the card with their digest; return the card.

    `averaged` are its weights by their names in the model.
    """
    assert card.adapter is not None
    data = save_tensors({file_name(name): value.contiguous() for name, value in averaged.items()})
    card = card.model_copy(update={"weights": storage.digest(data)})
    storage.write_bytes(storage.join(uri, card.files[0]), data)
    storage.write_bytes(storage.join(uri, ADAPTER_CONFIG), _config_bytes(card.adapter))
    storage.write_bytes(storage.join(uri, NULL_TEXT_FILE), save_tensors({NULL_TEXT: null_text.contiguous()}))
    storage.write_bytes(storage.join(uri, CARD), card.to_bytes())
    return card


def _config_bytes(adapter: AdapterCard) -> bytes:
    """Return the content of `adapter_config.json` as peft writes it."""
    values: dict[str, Any] = lora_config(adapter, adapter.base).to_dict()
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    return (json.dumps(values | {"inference_mode": True}, indent=2, sort_keys=True) + "\n").encode()


def read_model(uri: str) -> tuple[ModelCard, VideoModel, Tensor]:
    """Return what `read_export` does of an adapter's export: its model is that of the base with the adapter merged.

    Raises `ValueError` if the base is not there, or not the one of the training.
    """
    card = read_card(uri)
    null_uri = storage.join(uri, NULL_TEXT_FILE)
    tensors = load_tensors(read_weights(uri, card))
    if not storage.exists(null_uri):
        raise DamagedError(f"{null_uri}: is missing; {EXPORT_AGAIN}")
    return card, merged_model(card, tensors), load_tensors(storage.read_bytes(null_uri))[NULL_TEXT]


def merged_model(card: ModelCard, tensors: Mapping[str, Tensor]) -> VideoModel:
    """Return the model of a card with an adapter's weights, by their names in files, merged into those of its base."""
    assert card.adapter is not None
    base = find_base(card.adapter.base)
    if base.identity != card.adapter.base_identity:
        raise ValueError(
            f"{base.uri}: its weights are {base.identity}, and the adapter was trained beside "
            f"{card.adapter.base_identity}; put those back, or name their folder as base in {CARD}"
        )
    base.check()
    model = model_from_card(card, base.whole(_shapes(card)))
    merge_adapter(model, card.adapter, tensors, 1.0)
    return model


def find_base(init: str) -> InitialWeights:
    """Return the weights that an adapter changes. Raises `ValueError` if there are none of this name."""
    try:
        return find_initial_weights(init)
    except FileNotFoundError as error:
        raise ValueError(f"{init}: the adapter's base is missing: {error}") from error


def _shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = card.model.build(card.channels, card.text_dim)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
