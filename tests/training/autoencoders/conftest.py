"""Folders of pretrained autoencoders with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.random_autoencoders import save_autoencoder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of the autoencoder of a kind, which it writes once."""
    root = tmp_path_factory.mktemp("autoencoders")

    def folder_of(kind: str) -> Path:
        return root / kind if (root / kind).is_dir() else save_autoencoder(root / kind, kind)

    return folder_of
