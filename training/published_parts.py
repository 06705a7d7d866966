"""Whether a data set was encoded by the autoencoder and the text encoder that a published model was trained with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc

from cluster import weight_files
from cluster.weight_files import HUB_PREFIX
from training.data.buckets import latent_size, parse_bucket_name
from training.data.dataset import Dataset
from training.data.manifest import DatasetInfo
from training.models.diffusers import Diffusers


def part_faults(model: Diffusers, dataset: Dataset) -> Iterator[str]:
    """Yield a sentence with the recipe lines that make it right for each part of a data set that does not match."""
    info = dataset.info
    own = model.architecture
    lines = _autoencoder_lines(model)
    if info.channels != own.channels:
        yield f"the data set has latents of {info.channels} channels, and {model.path} takes {own.channels}; {lines}"
    elif _differs(model, "vae", info.autoencoder_identity):
        yield (
            f"the data set's latents are of {info.autoencoder_identity}, and {model.path} was trained with its own "
            f"autoencoder in the folder vae; {lines}"
        )
    yield from _text_faults(model, info, int(dataset.null_text().shape[-1]))
    for name in sorted(pc.unique(dataset.table["bucket"]).to_pylist()):
        sizes = latent_size(*parse_bucket_name(name), info.time_factor, info.space_factor)
        if any(size % patch for size, patch in zip(sizes, own.patch, strict=True)):
            unit = info.space_factor * max(own.patch[1:])
            patch = list(own.patch)
            yield f"bucket {name} cannot be cut into patches of {patch}; set multiple: {unit} in encode.buckets"


def _text_faults(model: Diffusers, info: DatasetInfo, text_dim: int) -> Iterator[str]:
    rule, encoder = model.family.text, info.text_encoder
    wanted = {"name": "t5", "max_tokens": rule.max_tokens, "cleaning": rule.cleaning, "padded": rule.padded}
    own = {key: f"{key} {encoder.get(key)}, not {value}" for key, value in wanted.items() if encoder.get(key) != value}
    fix = (
        f"encode the captions by text: {{name: t5, model: {model.path}/text_encoder, tokenizer: "
        f"{model.path}/tokenizer, max_tokens: {rule.max_tokens}, cleaning: {rule.cleaning}, "
        f"padded: {str(rule.padded).lower()}}}"
    )
    if text_dim != model.architecture.text_dim:
        yield (
            f"the data set has text tokens of width {text_dim}, and {model.path} takes {model.architecture.text_dim}; "
            f"{fix}"
        )
    elif own:
        yield f"the data set's text encoder has {'; '.join(own.values())}, as {model.path} was trained; {fix}"
    elif _differs(model, "text_encoder", info.text_encoder_identity):
        yield f"the data set's text encoder has other weights than the folder text_encoder of {model.path}; {fix}"


def _autoencoder_lines(model: Diffusers) -> str:
    return f"encode it by autoencoder: {{name: diffusers, path: {model.path}, subfolder: vae}}"


def _differs(model: Diffusers, part: str, identity: str) -> bool:
    """Return whether a folder of the published model has other weights than an identity names.

    A folder that was not downloaded cannot be compared.
    """
    if model.path.startswith(HUB_PREFIX):
        return model.path not in identity
    folder = Path(model.path, part)
    return folder.is_dir() and weight_files.identity(folder) not in identity
