"""Whether latents and texts are those of the autoencoder and the text encoder that a published model was trained with.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from cluster import weight_files
from cluster.weight_files import HUB_PREFIX
from training.data.buckets import latent_size, parse_bucket_name
from training.models._published_files import VAE
from training.models.diffusers import Diffusers

if TYPE_CHECKING:
    from captioning.encoder import TextEncoderSettings
    from training.autoencoder import AutoencoderSettings
    from training.data.dataset import Dataset

IMAGE_FAULT = "makes a video of an image; leave 1 out of frames in encode.buckets"
"""End of a sentence about images in the training data of such a model."""


def part_faults(model: Diffusers, dataset: Dataset) -> Iterator[str]:
    """Yield a sentence with the recipe lines that make it right for each part of a data set that does not match."""
    info = dataset.info
    own = model.architecture
    lines = f"encode it by {_lines('autoencoder', own_autoencoder(model))}"
    if info.channels != model.latent_channels:
        yield (
            f"the data set has latents of {info.channels} channels, and {model.path} takes {model.latent_channels}; "
            f"{lines}"
        )
    elif _differs(model, VAE, info.autoencoder_identity):
        yield (
            f"the data set's latents are of {info.autoencoder_identity}, and {model.path} was trained with its own "
            f"autoencoder in the folder {VAE}; {lines}"
        )
    fix = f"encode the captions by {_lines('text', own_text_encoder(model))}"
    text_dim = int(dataset.null_text().shape[-1])
    if text_dim != own.text_dim:
        yield f"the data set has text tokens of width {text_dim}, and {model.path} takes {own.text_dim}; {fix}"
    elif message := _rule_fault(model, info.text_encoder):
        yield f"the data set's text encoder has {message}, as {model.path} was trained; {fix}"
    else:
        for folder in model.family.text.weight_folders:
            if _differs(model, folder, info.text_encoder_identity):
                yield f"the data set's text encoder has other weights than the folder {folder} of {model.path}; {fix}"
    for name in sorted(pc.unique(dataset.table["bucket"]).to_pylist()):
        if model.image_channels and parse_bucket_name(name)[2] == 1:
            yield f"bucket {name} has images, and {model.path} {IMAGE_FAULT}"
        sizes = latent_size(*parse_bucket_name(name), info.time_factor, info.space_factor)
        if any(size % patch for size, patch in zip(sizes, own.patch, strict=True)):
            unit = info.space_factor * max(own.patch[1:])
            patch = list(own.patch)
            yield f"bucket {name} cannot be cut into patches of {patch}; set multiple: {unit} in encode.buckets"


def encoder_faults(
    model: Diffusers, autoencoder: AutoencoderSettings, text: TextEncoderSettings
) -> Iterator[tuple[str, str]]:
    """Yield the key of a recipe's step `encode`, and a sentence with the lines that make it right, for each encoder
    that is not the model's own.

    Folders of the model itself are not read, and others are compared with them byte by byte.
    """
    if _has_image_condition(autoencoder) != (model.image_channels > 0):
        wanted = "of image to video" if model.image_channels else "not of image to video"
        yield (
            "autoencoder",
            f"{model.path}, which train.model names, is {wanted}; set {_lines('autoencoder', own_autoencoder(model))}",
        )
    elif not _is_own_autoencoder(model, autoencoder) and _has(model, VAE):
        # Other autoencoders need not be hashed to know that they differ.
        identity = autoencoder.identity() if autoencoder.name == "diffusers" else ""
        if _differs(model, VAE, identity):
            message = (
                f"{autoencoder.name} is not the autoencoder in the folder {VAE} of {model.path}, which train.model was "
                f"trained with; set {_lines('autoencoder', own_autoencoder(model))}"
            )
            yield "autoencoder", message
    fix = f"set {_lines('text', own_text_encoder(model))}"
    values = text.model_dump(mode="json")
    if message := _rule_fault(model, values):
        yield "text", f"the text encoder has {message}, as {model.path}, which train.model names, was trained; {fix}"
        return
    rule = model.family.text
    for key, folder in rule.folders.items():
        is_own = values[key] == f"{model.path}/{folder}"
        if folder in rule.weight_folders and not is_own and _differs(model, folder, text.identity()):
            yield "text", f"{key} {values[key]} has other weights than the folder {folder} of {model.path}; {fix}"


def own_autoencoder(model: Diffusers) -> dict[str, Any]:
    """Return the settings of the autoencoder that a model was trained with."""
    revision = {} if model.revision == "main" else {"revision": model.revision}
    image = {"image_condition": True} if model.image_channels else {}
    return {"name": "diffusers", "path": model.path, "subfolder": VAE} | revision | image


def own_text_encoder(model: Diffusers) -> dict[str, Any]:
    """Return the settings of the text encoder that a model was trained with."""
    rule = model.family.text
    revision = {} if model.revision == "main" else {"revision": model.revision}
    folders = {key: f"{model.path}/{folder}" for key, folder in rule.folders.items()}
    return {"name": rule.name} | folders | revision | dict(rule.options)


def _lines(key: str, settings: Mapping[str, Any]) -> str:
    """Return settings as a line of a recipe."""
    values = (f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items())
    return f"{key}: {{{', '.join(values)}}}"


def _rule_fault(model: Diffusers, encoder: Mapping[str, Any]) -> str:
    """Return which settings of a text encoder are not those of the model's family; empty if all are."""
    wanted = (("name", model.family.text.name), *model.family.text.options)
    return "; ".join(f"{key} {encoder.get(key)}, not {value}" for key, value in wanted if encoder.get(key) != value)


def _is_own_autoencoder(model: Diffusers, autoencoder: AutoencoderSettings) -> bool:
    """Return whether an autoencoder is the folder `vae` of a local model, by its path."""
    path, subfolder = (getattr(autoencoder, key, "") for key in ("path", "subfolder"))
    return not model.path.startswith(HUB_PREFIX) and Path(path, subfolder) == Path(model.path, VAE)


def _has_image_condition(autoencoder: AutoencoderSettings) -> bool:
    return bool(getattr(autoencoder, "image_condition", False))


def _has(model: Diffusers, part: str) -> bool:
    """Return whether a part of the model can be compared; a folder that was not downloaded cannot."""
    return model.path.startswith(HUB_PREFIX) or Path(model.path, part).is_dir()


def _differs(model: Diffusers, part: str, identity: str) -> bool:
    """Return whether a part of the model, if it can be compared, has other weights than an identity names."""
    if model.path.startswith(HUB_PREFIX):
        return model.path not in identity
    return _has(model, part) and weight_files.identity(Path(model.path, part)) not in identity
