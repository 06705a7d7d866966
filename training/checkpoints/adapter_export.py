"""The export of an adapter: its averaged weights and a file of peft, beside the card of the model that it makes.

The names of the weights are those of peft and diffusers. The weights of the base are not in it: the card names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cluster import storage
from training.adapters.lora import file_name, lora_config, merge_adapter
from training.adapters.low_rank import METADATA, LoraFile, check_config, check_values, merge_changes, read_lora
from training.adapters.settings import ADAPTER_CONFIG, AdapterSettings
from training.checkpoints.export import EXPORT_AGAIN, NULL_TEXT, model_from_card, read_export, read_weights
from training.checkpoints.initial_weights import InitialWeights, find_initial_weights
from training.checkpoints.model_card import (
    ADAPTER_WEIGHTS,
    CARD,
    NULL_TEXT_FILE,
    AdapterCard,
    ModelCard,
    read_card,
)
from training.checkpoints.published_weights import PREFIX as PUBLISHED_PREFIX
from training.checkpoints.published_weights import published_weights
from training.data.footer import DamagedError
from training.model import ModelSettings
from training.models.diffusers import SUBFOLDERS, Diffusers
from training.network import VideoModel, parameter_shapes

WEIGHT_FILES = (ADAPTER_WEIGHTS, "adapter_model.safetensors")
"""Names of an adapter's file of weights: ours, and that of peft."""
FILE_SUFFIX = ".safetensors"


def write_adapter_export(uri: str, averaged: Mapping[str, Tensor], null_text: Tensor, card: ModelCard) -> ModelCard:
    """Write the files of an adapter, first the weights and at last the card with their digest; return the card.

    `averaged` are its weights by their names in the model.
    """
    adapter = card.adapter
    assert adapter is not None
    config = _config(adapter)
    config_bytes = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    # diffusers reads the scale from there, and otherwise takes it for 1.
    about = {f"{PUBLISHED_PREFIX}{name}": value for name, value in config.items()}
    metadata = {METADATA: json.dumps(about)} if isinstance(card.model, Diffusers) else None
    tensors = {file_name(name): value.contiguous() for name, value in averaged.items()}
    data = save_tensors(tensors, metadata)
    card = card.model_copy(update={"weights": storage.digest(data)})
    storage.write_bytes(storage.join(uri, card.files[0]), data)
    storage.write_bytes(storage.join(uri, ADAPTER_CONFIG), config_bytes)
    storage.write_bytes(storage.join(uri, NULL_TEXT_FILE), save_tensors({NULL_TEXT: null_text.contiguous()}))
    storage.write_bytes(storage.join(uri, CARD), card.to_bytes())
    return card


def _config(adapter: AdapterCard) -> dict[str, Any]:
    """Return the content of `adapter_config.json` as peft writes it."""
    values: dict[str, Any] = lora_config(adapter, adapter.base).to_dict()
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    return values | {"inference_mode": True}


def read_model(uri: str) -> tuple[ModelCard, VideoModel, Tensor]:
    """Return what `read_export` does; an adapter's model is that of its base with the adapter merged.

    Raises `ValueError` if the base is not there, or not the one of the training.
    """
    card = read_card(uri)
    if card.adapter is None:
        return read_export(uri)
    null_uri = storage.join(uri, NULL_TEXT_FILE)
    tensors = load_tensors(read_weights(uri, card))
    if not storage.exists(null_uri):
        raise DamagedError(f"{null_uri}: is missing; {EXPORT_AGAIN}")
    return card, merged_model(card, tensors), load_tensors(storage.read_bytes(null_uri))[NULL_TEXT]


def merged_model(card: ModelCard, tensors: Mapping[str, Tensor]) -> VideoModel:
    """Return the model of a card with an adapter's weights, by their names in files, merged into those of its base."""
    assert card.adapter is not None
    base = find_base(card.adapter.base, card.model)
    if base.identity != card.adapter.base_identity:
        raise ValueError(
            f"{base.uri}: its weights are {base.identity}, and the adapter was trained beside "
            f"{card.adapter.base_identity}; put those back, or name their folder as base in {CARD}"
        )
    base.check()
    model = model_from_card(card, base.whole(_shapes(card)))
    merge_adapter(model, card.adapter, tensors, 1.0)
    return model


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter's files in a folder: an export, or what peft saved."""

    uri: str
    settings: AdapterSettings
    file: str
    """Name of the file of weights."""
    card: ModelCard | None
    """The card of an export."""
    subfolders: ClassVar[frozenset[str]] = frozenset()
    """The experts that it says it is for: none, so that it is for the one that a model names."""

    def check_base(self, model: ModelCard) -> None:
        """Raise `ValueError` if the adapter was trained beside other weights than those of a model."""
        if self.card is None or self.card.adapter is None:
            return
        base = model.identity if model.adapter is None else model.adapter.base_identity
        trained = self.card.adapter
        if trained.base_identity != base:
            raise ValueError(
                f"{self.uri}: was trained beside the weights {trained.base_identity} of {trained.base}, and this "
                f"model has {base}; sample that one, or --model {self.uri} without --adapter"
            )

    @property
    def identity(self) -> str:
        """Digest of the weights."""
        return storage.file_digest(storage.join(self.uri, self.file))

    def merge_into(self, model: VideoModel, weight: float) -> None:
        """Add `weight` times the adapter's change to a model's weights. Raises `ValueError` if it is of another."""
        uri = storage.join(self.uri, self.file)
        data = storage.read_bytes(uri) if self.card is None else read_weights(self.uri, self.card)
        tensors = load_tensors(data)
        try:
            check_values(tensors)
            merge_adapter(model, self.settings, tensors, weight)
        except ValueError as error:
            raise ValueError(f"{uri}: {error}") from error


@dataclass(frozen=True)
class AdapterFile:
    """A safetensors file of a LoRA, with the names of diffusers, of the model's authors or of kohya's trainers."""

    file: LoraFile

    def check_base(self, model: ModelCard) -> None:
        """Raise `ValueError` if its keys and shapes are not those of a model's layers, or of both experts' layers if it
        has keys of both.
        """
        own = model.model
        experts = [expert for expert, folder in SUBFOLDERS.items() if folder in self.subfolders]
        two = isinstance(own, Diffusers) and own.expert is not None
        for one in [own.model_copy(update={"expert": expert}) for expert in experts] if two and experts else [own]:
            with torch.device("meta"):
                built = one.build(model.channels, model.text_dim)
            self.file.changes(built)

    @property
    def identity(self) -> str:
        """Digest of the file."""
        return self.file.identity

    @property
    def subfolders(self) -> frozenset[str]:
        """As `LoraFile.subfolders`."""
        return self.file.subfolders

    def merge_into(self, model: VideoModel, weight: float) -> None:
        """Add `weight` times the LoRA's change to a model's weights. Raises `ValueError` if it is of another."""
        merge_changes(model, self.file.changes(model), weight)


def find_adapter(uri: str) -> StoredAdapter | AdapterFile:
    """Return the adapter in a folder or a safetensors file. Raises `ValueError` if there is none."""
    if uri.endswith(FILE_SUFFIX):
        if not storage.exists(uri):
            raise ValueError(f"{uri}: there is no such file")
        return AdapterFile(read_lora(uri))
    if storage.exists(storage.join(uri, CARD)):
        card = read_card(uri)
        if card.adapter is None:
            raise ValueError(f"{uri}: is a whole model and no adapter; give it by --model")
        return StoredAdapter(uri, card.adapter, card.files[0], card)
    config_uri = storage.join(uri, ADAPTER_CONFIG)
    file = next((name for name in WEIGHT_FILES if storage.exists(storage.join(uri, name))), None)
    if file is None or not storage.exists(config_uri):
        raise ValueError(
            f"{uri}: is no adapter, which has {ADAPTER_CONFIG} and {' or '.join(WEIGHT_FILES)}; give the export of a "
            f"run with train.adapter, a folder that peft saved, or a file of a LoRA (*{FILE_SUFFIX})"
        )
    values = storage.read_json(config_uri)
    targets = values.get("target_modules")
    if not isinstance(targets, list):
        raise ValueError(f"{config_uri}: target_modules is {targets!r}, and must be a list of names")
    try:
        check_config(values)
    except ValueError as error:
        raise ValueError(f"{config_uri}: {error}") from error
    if own := [key for key in ("use_rslora", "rank_pattern") if values.get(key)]:
        raise ValueError(f"{config_uri}: {own[0]} is read with a file alone; give {storage.join(uri, file)}")
    settings = AdapterSettings(
        rank=values["r"], alpha=values["lora_alpha"], targets=tuple(targets), dora=bool(values.get("use_dora"))
    )
    return StoredAdapter(uri, settings, file, None)


def find_base(init: str, model: ModelSettings) -> InitialWeights:
    """Return the weights that an adapter of a model changes. Raises `ValueError` if there are none of this name."""
    try:
        if isinstance(model, Diffusers) and init == model.path:
            return published_weights(model)
        return find_initial_weights(init)
    except FileNotFoundError as error:
        raise ValueError(f"{init}: the adapter's base is missing: {error}") from error


def _shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return parameter_shapes(card.model.build(card.channels, card.text_dim))
