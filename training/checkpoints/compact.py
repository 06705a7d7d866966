"""Compact exports, to give a model away: the averaged weights in bfloat16, and the autoencoder's in the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors

from cluster import storage
from cluster.weight_files import is_path
from training.checkpoints.adapter_export import read_model
from training.checkpoints.export import AVERAGED_PREFIX, NULL_TEXT, read_weights
from training.checkpoints.hub_metadata import public_path
from training.checkpoints.model_card import AUTOENCODER, CARD, INSIDE, WEIGHTS, ModelCard, read_card


def write_compact_export(export_uri: str, uri: str, merge: bool = False) -> ModelCard:
    """Write the averaged weights of an export in bfloat16 to another folder; return the card that is written there.

    An adapter is written as it is, without its base. With `merge` it is merged into its base, and the whole model is
    written in float32, because bfloat16 would round small changes away.

    If the card names the autoencoder's weights by a path, their file is copied to the folder too, as it is, because
    latents of other weights would be others. The same export gives the same files. Raises `ValueError` if that file is
    missing or was changed since training, for a merge of what is no adapter, and as `read_export`.
    """
    card = read_card(export_uri)
    if merge and card.adapter is None:
        raise ValueError(f"{export_uri}: is a whole model, with no adapter to merge; leave out --merge")
    autoencoder = _autoencoder_file(card)
    values = json.loads(card.to_bytes())
    if card.adapter is None or merge:
        data = _model_bytes(export_uri, torch.float32 if merge else torch.bfloat16)
        values |= {"weights": storage.digest(data), "made_from": None if merge else card.identity, "adapter": None}
        files = {WEIGHTS: data}
    else:
        read_weights(export_uri, card)
        files = {name: storage.read_bytes(storage.join(export_uri, name)) for name in card.files}
    if card.init is not None:
        values["init"] = public_path(card.init)
    if autoencoder is not None:
        storage.write_bytes(storage.join(uri, AUTOENCODER), autoencoder.read_bytes())
        values["autoencoder"]["weights"] = INSIDE + AUTOENCODER
    for name, content in files.items():
        storage.write_bytes(storage.join(uri, name), content)
    storage.write_bytes(storage.join(uri, CARD), (json.dumps(values, indent=2) + "\n").encode())
    return read_card(uri)


def _model_bytes(export_uri: str, dtype: torch.dtype) -> bytes:
    """Return the content of a file of averaged weights of this type, with the null caption."""
    _, model, null_text = read_model(export_uri)
    tensors = {f"{AVERAGED_PREFIX}{name}": value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    content: bytes = save_tensors(tensors | {NULL_TEXT: null_text.to(torch.float32).contiguous()})
    return content


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
