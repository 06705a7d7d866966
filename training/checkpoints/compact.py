"""Compact exports, to give a model away: the averaged weights in bfloat16, and the autoencoder's in the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors

from cluster import storage
from cluster.weight_files import is_path
from training.checkpoints.export import AVERAGED_PREFIX, NULL_TEXT, read_export
from training.checkpoints.model_card import AUTOENCODER, CARD, INSIDE, WEIGHTS, ModelCard, read_card

INIT_PARTS = 3
"""Parts of the path of the weights that training started from that are kept: run, `checkpoints` and step."""


def write_compact_export(export_uri: str, uri: str) -> ModelCard:
    """Write the averaged weights of an export in bfloat16 to another folder; return the card that is written there.

    If the card names the autoencoder's weights by a path, their file is copied to the folder too, as it is, because
    latents of other weights would be others. The same export gives the same files. Raises `ValueError` if that file is
    missing or was changed since training, and as `read_export`.
    """
    card, model, null_text = read_export(export_uri)
    autoencoder = _autoencoder_file(card)
    tensors = {f"{AVERAGED_PREFIX}{name}": value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    data = save_tensors(tensors | {NULL_TEXT: null_text.to(torch.float32).contiguous()})
    values = json.loads(card.to_bytes()) | {"weights": storage.digest(data)}
    if card.init is not None:
        # Folders of the machine that trained it mean nothing elsewhere.
        values["init"] = "/".join(card.init.split("/")[-INIT_PARTS:])
    if autoencoder is not None:
        storage.write_bytes(storage.join(uri, AUTOENCODER), autoencoder.read_bytes())
        values["autoencoder"]["weights"] = INSIDE + AUTOENCODER
    storage.write_bytes(storage.join(uri, WEIGHTS), data)
    storage.write_bytes(storage.join(uri, CARD), (json.dumps(values, indent=2) + "\n").encode())
    return read_card(uri)


def _autoencoder_file(card: ModelCard) -> Path | None:
    """Return the file of the autoencoder's weights if its settings name it by a path."""
    weights = getattr(card.autoencoder, "weights", None)
    if weights is None or not is_path(weights):
        return None
    if card.autoencoder.identity() != card.autoencoder_identity:
        raise ValueError(
            f"{weights}: holds other weights than {card.autoencoder_identity}, which the model was trained with; "
            "put back the file of the training"
        )
    return Path(weights)
