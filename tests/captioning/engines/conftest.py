"""Fixtures of the tests of engines: a misbehaving server, and tiny models that are saved once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from captioning.engines.transformers import Transformers
from tests.support import tiny_models
from tests.support.misbehaving_server import Server, serving


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """A server without a script."""
    shared_server.reset({})
    return shared_server


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread: models this small are slower with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of saved models by name."""
    root = tmp_path_factory.getbasetemp() / "tiny-models"
    return {name: getattr(tiny_models, name)(root) for name in ("llama", *tiny_models.WITH_VISION)}


@pytest.fixture(scope="module")
def opened(one_thread: None, model_folders: dict[str, Path]) -> dict[str, Any]:
    """Open captioners by name of the model."""
    return {name: Transformers(model=str(folder), batch_size=4).open() for name, folder in model_folders.items()}
