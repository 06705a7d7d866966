"""Weights of a published model as the initial weights of a run, read range by range from its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from safetensors import safe_open
from torch import Tensor

from cluster import storage
from cluster.config import list_names
from training.checkpoints.fragments import Fragment
from training.checkpoints.initial_weights import DTYPES, InitialWeights, copy_range
from training.models._published_files import CLIP_WEIGHTS, CONNECTORS, IMAGE_ENCODER, StoredTensor, header_of
from training.models.diffusers import Diffusers
from training.network import parameter_shapes
from training.weight_names import prefix_fault

PREFIX = "transformer."
"""Prefix of the names of weights in our models; files of diffusers lack it."""
IDENTIFYING_BYTES = 1 << 20
"""How much of each file decides the identity of weights."""
MAX_NAMED = 3
"""Most weights that a message names."""


def published_weights(settings: Diffusers) -> InitialWeights:
    """Return the weights of a published model, which are exactly those of its transformer but for a part that the
    family leaves out.

    Raises `ValueError` with the fix if a file is missing or cut off, or if a weight is missing, left over, or of
    another shape or type.
    """
    tensors = stored_tensors(settings)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    _check(settings, tensors)
    identity = _identity(settings)
    return InitialWeights(settings.path, shapes, None, identity, lambda: None, partial(_read, tensors))


def stored_tensors(settings: Diffusers) -> dict[str, StoredTensor]:
    """Return the tensors of a published transformer by the name of the weight in our model."""
    return {
        PREFIX + name: tensor
        for file in settings.files.weight_files(settings.subfolder)
        for name, tensor in header_of(file).items()
        if not settings.family.leaves_out(name)
    }


def left_out_tensors(settings: Diffusers) -> dict[str, Tensor]:
    """Return the published weights of the part that the family leaves out, by their names in files of diffusers.

    Raises `ValueError` with the fix if a file is missing or cut off.
    """
    tensors: dict[str, Tensor] = {}
    # Exports of most families do not need the published files.
    for file in settings.files.weight_files(settings.subfolder) if settings.family.left_out else []:
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if settings.family.leaves_out(name)]  # noqa: SIM118
            tensors |= {name: opened.get_tensor(name) for name in names}
    return tensors


def _identity(settings: Diffusers) -> str:
    """Return a digest of the sizes of the files of weights and of the first megabyte of each, header included; with
    those of CLIP and of the text connectors, if the network sees the first frame or the texts through them.

    All bytes of 28 GB would take minutes, and other weights differ in the first ones already.
    """
    parts: list[str | bytes] = []
    image_encoder = settings.files.weight_files(IMAGE_ENCODER, CLIP_WEIGHTS) if settings.sees_image else []
    connectors = settings.files.weight_files(CONNECTORS) if settings.family.connects_texts else []
    for file in [*settings.files.weight_files(settings.subfolder), *image_encoder, *connectors]:
        with file.open("rb") as handle:
            parts += [file.name, str(file.stat().st_size), handle.read(IDENTIFYING_BYTES)]
    return storage.digest(*parts)


def _check(settings: Diffusers, tensors: Mapping[str, StoredTensor]) -> None:
    with torch.device("meta"):
        model = settings.build(settings.latent_channels, settings.architecture.text_dim)
    shapes = parameter_shapes(model)
    where = f"{settings.path}: the weights in {settings.subfolder} are not those of its config.json"
    fix = f"put back the weights of this {settings.family.class_name}, or download the whole folder again"
    own_names, file_names = ({name.removeprefix(PREFIX) for name in names} for names in (shapes, tensors))
    if message := prefix_fault(own_names, file_names):
        raise ValueError(f"{where}: {message}, or {fix}")
    for what, names in (
        ("lack", own_names - file_names),
        ("also have", file_names - own_names),
    ):
        if names:
            raise ValueError(f"{where}: they {what} {list_names(sorted(names), MAX_NAMED)}; {fix}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{where}: {name} is {list(tensor.shape)}, not {list(shapes[name])}; {fix}")
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{where}: {name} is of type {tensor.dtype}, and training starts from {', '.join(DTYPES)}; take the "
                "weights that are not quantised"
            )


def _read(tensors: Mapping[str, StoredTensor], fragments: Sequence[Fragment], shards: Sequence[Tensor]) -> None:
    for fragment in fragments:
        tensor = tensors[fragment.name]
        with tensor.file.open("rb") as handle:
            copy_range(handle, tensor.start, DTYPES[tensor.dtype], fragment, shards)
