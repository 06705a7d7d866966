"""A trained published model as diffusers stores it: a folder that pipelines load in place of their transformer."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save as save_tensors

from cluster import storage
from training.checkpoints.export import read_export
from training.checkpoints.published_weights import PREFIX, left_out_tensors
from training.models._published_files import WEIGHTS
from training.models.diffusers import Diffusers


def write_published_export(export_uri: str, uri: str) -> None:
    """Write the averaged weights of an export in bfloat16 to the folder `transformer` of another folder, or for an
    expert of low noise levels to `transformer_2`.

    `from_pretrained(folder, subfolder="transformer")` of the transformer's class loads it. Weights that the family
    leaves out are those of the published model. Raises as `read_export`, and `ValueError` for another model or if the
    published files are not there.
    """
    card, model, _ = read_export(export_uri)
    if not isinstance(card.model, Diffusers):
        raise ValueError(f"{export_uri}: is of model {card.model.name}, which diffusers does not have")
    own = {name.removeprefix(PREFIX): value for name, value in model.state_dict().items()}
    tensors = {
        name: value.to(torch.bfloat16).contiguous() for name, value in (own | left_out_tensors(card.model)).items()
    }
    config = json.dumps(dict(card.model.published.transformer), indent=2) + "\n"
    folder = storage.join(uri, card.model.subfolder)
    # Diffusers wants to know the framework of the file.
    storage.write_bytes(storage.join(folder, WEIGHTS), save_tensors(tensors, metadata={"format": "pt"}))
    storage.write_bytes(storage.join(folder, "config.json"), config.encode())
