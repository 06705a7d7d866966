"""A trained published model as ComfyUI loads it: one file, with the names of the model's authors."""

from __future__ import annotations

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cluster import storage
from training.adapters.lora import A
from training.checkpoints.adapter_export import read_model
from training.checkpoints.export import read_weights
from training.checkpoints.model_card import ModelCard, read_card
from training.checkpoints.published_weights import PREFIX
from training.models.diffusers import Diffusers

MODEL_FILE, ADAPTER_FILE = "comfyui/model.safetensors", "comfyui/lora.safetensors"
"""Files for the folders `diffusion_models` and `loras` of ComfyUI."""
MODEL_PREFIX, ADAPTER_PREFIX = "model.diffusion_model.", "diffusion_model."


def write_comfyui_export(export_uri: str, uri: str, merge: bool = False) -> None:
    """Write the averaged weights of an export, a whole model in bfloat16 or an adapter, to another folder.

    An adapter has a scale per layer, if it is not 1; with `merge` the whole model is written. Raises `ValueError` for
    another model, for a family whose names are not known, and for a DoRA that is not merged.
    """
    card = read_card(export_uri)
    if not isinstance(card.model, Diffusers):
        raise ValueError(f"{export_uri}: is of model {card.model.name}, which ComfyUI does not have")
    if card.adapter is None or merge:
        file, tensors = MODEL_FILE, _model_tensors(export_uri, card.model)
    else:
        file, tensors = ADAPTER_FILE, _adapter_tensors(export_uri, card)
    storage.write_bytes(storage.join(uri, file), save_tensors(tensors, metadata={"format": "pt"}))


def _model_tensors(export_uri: str, model: Diffusers) -> dict[str, Tensor]:
    _, network, _ = read_model(export_uri)
    return {
        MODEL_PREFIX + model.family.original_name(name.removeprefix(PREFIX)): value.to(torch.bfloat16).contiguous()
        for name, value in network.state_dict().items()
    }


def _adapter_tensors(export_uri: str, card: ModelCard) -> dict[str, Tensor]:
    assert isinstance(card.model, Diffusers)
    assert card.adapter is not None
    if card.adapter.dora:
        raise ValueError(f"{export_uri}: is a DoRA, which is not written for ComfyUI; write the whole model by --merge")
    tensors: dict[str, Tensor] = {}
    for name, value in load_tensors(read_weights(export_uri, card)).items():
        own = ADAPTER_PREFIX + card.model.family.original_name(name.removeprefix(PREFIX))
        tensors[own] = value
        if card.adapter.alpha != card.adapter.rank and f".{A}." in own:
            tensors[f"{own.partition(f'.{A}.')[0]}.alpha"] = torch.tensor(float(card.adapter.alpha or 1))
    return tensors
