"""Fixtures of autoencoder training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.autoencoder_clips import write_clips


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of clips that tests only read."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder)
    return folder
