"""`worldloom train-autoencoder`: from footage to an autoencoder's weights, and from these weights to latent shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cluster.config import ConfigError, parse, parse_document
from pipelines import inline
from pipelines.commands.train_autoencoder import load_autoencoder_recipe, train_autoencoder
from pipelines.curation import run_segments
from pipelines.dataset.autoencoder_clips import INDEX
from pipelines.dataset.build import build_dataset
from pipelines.recipe import Recipe
from tests.support.autoencoder_footage import write_footage
from tests.support.command_line import CommandLine
from tests.support.paths import ROOT
from training.autoencoders.causal import Causal
from training.data.dataset import Dataset
from training.data.verify import verify
from training.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_footage(tmp_path_factory.mktemp("footage"))


def recipe_file(folder: Path, footage: Path, **train: Any) -> Path:
    """Write a recipe that trains a tiny autoencoder for 3 steps. `train` overrides its training settings."""
    recipe = {
        "name": "small",
        "out": str(folder / "out"),
        "sources": [{"videos": str(footage / "*.mp4")}, {"images": str(footage / "*.png")}],
        # Half of six files: one of the files is broken, so each split has at least two that give clips.
        "splits": {"val": 0.5},
        "clips": {"sizes": [32, 48], "frames": 9, "per_source": 2},
        "train": {
            "preset": "tiny",
            "steps": 3,
            "warmup_steps": 1,
            "crops": [{"size": 24, "frames": 5, "batch": 2}, {"size": 24, "frames": 1, "batch": 2}],
            **train,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def weights(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of weights that were trained in this process."""
    path = recipe_file(tmp_path_factory.mktemp("run"), footage)
    return train_autoencoder(load_autoencoder_recipe(path), in_process=True)


def test_the_packaged_recipe_is_valid() -> None:
    path = ROOT / "pipelines" / "recipes" / "autoencoder.yaml"
    assert load_autoencoder_recipe(path).train.preset == "small"
    message = r"autoencoder\.yaml.*train\.presett: unknown key 'presett'; did you mean 'preset'"
    with pytest.raises(ConfigError, match=message):
        load_autoencoder_recipe(path, ["train.presett=large"])


def test_trained_weights_encode_a_recipe_to_shards(footage: Path, weights: str, tmp_path: Path) -> None:
    encode = {
        "autoencoder": {"name": "causal", "weights": weights},
        "buckets": [{"size": 32, "frames": [9], "fps": 8, "aspects": ["1:1"]}],
    }
    text = {
        "name": "with-causal",
        "out": str(tmp_path / "out"),
        "sources": [{"videos": f"{footage}/{{0,1,2,3}}.mp4"}],
        "curate": [{"scan": {}}, {"cut": {"min_s": 0.5}}, {"caption": {"engine": "signals"}}, {"encode": encode}],
    }
    recipe = parse(Recipe, parse_document(yaml.safe_dump(text), "recipe.yaml"))
    built = build_dataset(recipe, run_segments(recipe, inline), inline)
    dataset = Dataset.open(built.manifest_uri, "train")
    assert dataset.info.autoencoder_identity == Causal(weights=weights).identity()
    assert verify(built.manifest_uri) == []
    sample = dataset.sample(0)
    assert sample.latent.shape == (16, 3, 4, 4)
    assert sample.last_frame_latent is not None
    assert sample.last_frame_latent.shape == (16, 1, 4, 4)
    assert torch.isfinite(sample.latent.float()).all()


def test_a_finished_training_prints_its_weights(weights: str, worldloom: CommandLine) -> None:
    recipe = Path(weights).parents[3] / "recipe.yaml"
    clips = worldloom("train-autoencoder", recipe, "--only", "clips", "--inline")
    assert clips.exit_code == 0, clips.stderr
    assert (Path(clips.stdout.strip()) / INDEX).is_file()
    before = Path(weights).stat().st_mtime_ns
    trained = worldloom("train-autoencoder", recipe, "--inline")
    assert (trained.exit_code, trained.stdout) == (0, f"{weights}\n"), trained.stderr
    assert Path(weights).stat().st_mtime_ns == before
    assert worldloom("train-autoencoder", recipe, "--only", "weights").exit_code == 2
    status = json.loads(worldloom("status", recipe.parent / "out", "--json").stdout)
    assert (status["state"], [run["state"] for run in status["trainings"]]) == ("finished", ["finished"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.crops=[{size: 64, frames: 5}]", r"train\.crops: .*train: of \d+ clips none has 5 frames of 64x64"),
        ("splits.val=0.0", r"leave none to train on or none to validate on"),
        ("train.init=none", r"train\.init: unknown weights 'none'; Known weights: small"),
        ("train.init=small", r"train\.init: small has not the size of preset tiny; write preset: small"),
        ("out=s3://bucket/x", r"out s3://bucket/x: clips are memory-mapped"),
    ],
)
def test_impossible_training_is_refused_first(footage: Path, tmp_path: Path, assignment: str, message: str) -> None:
    recipe = load_autoencoder_recipe(recipe_file(tmp_path, footage), [assignment])
    with pytest.raises(ConfigError, match=message):
        train_autoencoder(recipe, in_process=True)


@pytest.mark.usefixtures("ray_session")
def test_two_workers_have_the_losses_of_one_process(footage: Path, weights: str, tmp_path: Path) -> None:
    found = train_autoencoder(load_autoencoder_recipe(recipe_file(tmp_path, footage, workers=2)))
    two, one = (read_metrics(str(Path(uri).parents[1])) for uri in (found, weights))
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], rel=1e-3)
    assert Causal(weights=found).open().channels == 16
