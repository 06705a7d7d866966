"""Provenance: the record beside each generated file of how it was made, as JSON."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.arrays import Pixels
from training.checkpoints.model_card import ModelCard, read_card
from training.sampling.settings import SampleSettings, VideoShape


def version() -> str:
    """Return the installed version of worldloom."""
    return importlib.metadata.version("worldloom")


@dataclass(frozen=True)
class SampleRequest:
    """A sample as it was requested, and the prompt and images that the model is conditioned on."""

    settings: SampleSettings
    prompt: str
    """The prompt that the model sees."""
    upsampler: str | None
    """Identity of the upsampler that wrote `prompt` from the one in the settings; None if they are the same."""
    images: Mapping[str, Pixels]
    """RGB images `[H, W, 3]` by the end of the video, `first` or `last`."""
    videos: Mapping[str, Pixels] = field(default_factory=dict)
    """RGB videos `[T, H, W, 3]` by their setting, `video` or `connect`."""


def provenance(
    request: SampleRequest, shape: VideoShape, card: ModelCard, export_uri: str, adapters: Mapping[str, str]
) -> dict[str, Any]:
    """Return all that is needed to generate a file again: the request, its shape, and the identity of every part.

    `adapters` are the digests of the adapters' weights by folder.
    """
    settings = request.settings
    weaker_uri = settings.guidance_method.weaker_export
    return {
        "prompt": request.prompt,
        "requested_prompt": settings.prompt,
        "upsampler": request.upsampler,
        "images": {end: storage.digest(image_HWC.tobytes()) for end, image_HWC in request.images.items()},
        "videos": {key: storage.digest(video_THWC.tobytes()) for key, video_THWC in request.videos.items()},
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        **shape._asdict(),
        "model": {
            "export": storage.absolute(export_uri),
            "weights": card.weights,
            "step": card.step,
            "val_loss": card.val_loss,
            "seed": card.seed,
            "data": card.data,
            "autoencoder": card.autoencoder_identity,
            "text_encoder": card.text_encoder_identity,
        },
        "adapters": dict(adapters),
        "other_expert_weights": None if settings.other_expert is None else read_card(settings.other_expert).weights,
        "weaker_weights": None if weaker_uri is None else read_card(weaker_uri).weights,
        "worldloom": version(),
    }


def provenance_uri(uri: str) -> str:
    """Return the URI of the record of a generated file. An image and a video of one stem have one each."""
    return uri + ".json"


def write_provenance(uri: str, record: dict[str, Any]) -> None:
    """Write the record of a generated file beside it."""
    storage.write_bytes(provenance_uri(uri), (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_provenance(uri: str) -> dict[str, Any] | None:
    """Read the record of a generated file; None if there is none that can be read."""
    return _read_record(provenance_uri(uri)) if storage.exists(provenance_uri(uri)) else None


def find_upsampled(folder_uri: str, prompt: str, upsampler: str) -> str | None:
    """Return what this upsampler made of a prompt for an earlier sample in a folder; None if there is none."""
    for entry in storage.list_files(folder_uri, ".json"):
        record = _read_record(entry.uri) or {}
        if (record.get("requested_prompt"), record.get("upsampler")) == (prompt, upsampler):
            return str(record["prompt"])
    return None


def _read_record(uri: str) -> dict[str, Any] | None:
    try:
        record = storage.read_json(uri)
    except ValueError:  # cut off, or no record of ours: the file is made again
        return None
    return record if isinstance(record, dict) else None
