"""How a generated file came to be, written beside it as JSON."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster import storage
from training.checkpoints.model_card import ModelCard
from training.sampling.settings import SampleSettings


def version() -> str:
    """Version of worldloom, as installed."""
    return importlib.metadata.version("worldloom")


def provenance(
    settings: SampleSettings,
    prompt: str,
    upsampler: str | None,
    pictures: Mapping[str, NDArray[np.uint8]],
    card: ModelCard,
    export_uri: str,
    frames: int,
    width: int,
    height: int,
    fps: float,
) -> dict[str, Any]:
    """All that is needed to generate the file again: request, what it was rounded to, and the identity of every part.

    `prompt` is what the model is given, and `upsampler` who made it of the one in `settings`, None where they are the same.
    `pictures` are those it is given, `[H, W, 3]` by place.
    """
    return {
        "prompt": prompt,
        "prompt_asked_for": settings.prompt,
        "upsampler": upsampler,
        "pictures": {place: storage.digest(picture_HWC.tobytes()) for place, picture_HWC in pictures.items()},
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        "frames": frames,
        "width": width,
        "height": height,
        "fps": fps,
        "model": {
            "export": storage.absolute(export_uri),
            "weights": card.weights,
            "step": card.step,
            "seed": card.seed,
            "data": card.data,
            "autoencoder": card.autoencoder_identity,
            "text_encoder": card.text_encoder_identity,
        },
        "worldloom": version(),
    }


def provenance_uri(uri: str) -> str:
    """Where the record of a generated file stands."""
    return uri.rpartition(".")[0] + ".json"


def write_provenance(uri: str, record: dict[str, Any]) -> None:
    """Write the record of a generated file beside it."""
    storage.write_bytes(provenance_uri(uri), (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_provenance(uri: str) -> dict[str, Any] | None:
    """The record of a generated file; None where there is none."""
    if not storage.exists(provenance_uri(uri)):
        return None
    record: dict[str, Any] = json.loads(storage.read_bytes(provenance_uri(uri)))
    return record
