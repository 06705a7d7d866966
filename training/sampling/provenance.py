"""How a generated file came to be, written beside it as JSON."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

from cluster import storage
from training.export import ModelCard
from training.sampling.settings import SampleSettings


def version() -> str:
    """Version of worldloom, as installed."""
    return importlib.metadata.version("worldloom")


def provenance(settings: SampleSettings, card: ModelCard, export_uri: str, frames: int, width: int, height: int, fps: float) -> dict[str, Any]:
    """All that is needed to generate the file again: request, what it was rounded to, and the identity of every part."""
    return {
        "prompt": settings.prompt,
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


def write_provenance(uri: str, record: dict[str, Any]) -> None:
    """Write a record beside the file it is about."""
    storage.write_bytes(uri, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
