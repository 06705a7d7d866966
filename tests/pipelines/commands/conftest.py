"""A recipe that was curated and trained, whose footage is gone."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.commands.curate import curate
from pipelines.commands.train import train
from pipelines.recipe import load_recipe
from tests.support.videos import encode, sliding

TRAINING: dict[str, Any] = {
    "model": {"name": "dit", "depth": 1, "dim": 32, "heads": 2},
    "steps": 3,
    "batch": {"tokens_per_step": 512},
    "warmup_steps": 1,
    "previews": {"every": 0, "count": 1, "steps": 1},
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a recipe that was curated and then trained for 3 steps without its footage."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "in").mkdir()
    for number in range(4):
        video = sliding(40, 1.0 + number, 96, 64, seed=number)
        encode(folder / "in" / f"{number}.mp4", video, time_base=Fraction(1, 24))
    buckets = [{"size": 32, "frames": [9], "fps": 8, "aspects": ["1:1"]}]
    recipe = {
        "name": "trained",
        "out": str(folder / "out"),
        "sources": [{"videos": str(folder / "in" / "*.mp4")}],
        "curate": [
            {"scan": {}},
            {"cut": {"min_s": 0.5}},
            {"caption": {"engine": "signals"}},
            {"encode": {"autoencoder": {"name": "linear"}, "buckets": buckets}},
        ],
        "splits": {"val": 0.25},
        "train": TRAINING,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert curate(load_recipe(path), in_process=True).dataset is not None
    (folder / "in").rename(folder / "away")
    train(load_recipe(path), in_process=True)
    return path


@pytest.fixture
def footage(trained: Path) -> Iterator[Path]:
    """Yield the folder of the trained recipe's footage, which is there during the test alone."""
    folder = trained.parent / "in"
    (trained.parent / "away").rename(folder)
    yield folder
    folder.rename(trained.parent / "away")


@pytest.fixture(scope="session")
def export(trained: Path) -> Path:
    """Return the folder of the exported model of the trained recipe."""
    (folder,) = (trained.parent / "out").glob("run-*/export")
    return folder


@pytest.fixture(scope="session")
def manifest(trained: Path) -> Path:
    """Return the manifest that the trained recipe was trained on."""
    (path,) = (trained.parent / "out" / "tables").glob("manifest-*/_manifest.parquet")
    return path
