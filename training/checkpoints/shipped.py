"""Models that are shipped with the package, found by name. This module imports neither torch nor Ray."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cluster import storage
from cluster.config import unknown_message
from cluster.weight_files import is_path
from training.checkpoints.model_card import CARD

PACKAGE = "training.shipped_models"
"""Package with a folder per shipped model, which is a compact export."""


def shipped_models() -> dict[str, Path]:
    """Return the folders of shipped models by name."""
    folder = Path(str(resources.files(PACKAGE)))
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CARD}"))}


def find_export(model: str) -> str:
    """Return the URI of an export that is named by its folder or, for a shipped model, by its name.

    Raises `ValueError` if it is the name of neither.
    """
    if is_path(model):
        return model
    shipped = shipped_models()
    if model in shipped:
        return str(shipped[model])
    if storage.exists(storage.join(model, CARD)):
        return model
    raise ValueError(f"{unknown_message('model', model, list(shipped))}; or give the folder of an export")
