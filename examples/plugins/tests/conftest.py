"""Fixtures of the tests, and the path of the package, which need not be installed to be tested."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster import plugins

PACKAGE = Path(__file__).parents[1]

sys.path.insert(0, str(PACKAGE))
torch.set_num_threads(1)  # On busy cores, threads of a tiny model wait for each other.


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the entry points of `pyproject.toml` visible to worldloom, as an installation of the package does."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "site" / "worldloom_example_plugins.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {module}" for name, module in project["entry-points"]["worldloom.plugins"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[worldloom.plugins]", *lines]))
    monkeypatch.syspath_prepend(metadata.parent)
    plugins._entry_points.cache_clear()
    yield
    plugins._entry_points.cache_clear()
