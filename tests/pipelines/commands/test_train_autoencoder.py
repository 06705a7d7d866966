"""From footage to an autoencoder's weights, and from these weights to latent shards."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster.config import ConfigError, parse, parse_document
from pipelines import cli, inline
from pipelines.commands.train_autoencoder import load_autoencoder_recipe, make_data, train_autoencoder
from pipelines.curation import run_segments
from pipelines.dataset.autoencoder_clips import INDEX, fitting_sizes, make_clips, spans
from pipelines.dataset.build import build_dataset
from pipelines.recipe import Recipe
from tests.support.paths import ROOT
from tests.support.videos import encode, sliding
from training.autoencoders.causal import Causal
from training.data.dataset import Dataset
from training.data.verify import verify
from training.tracking.metrics import read_metrics


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for index in range(4):
        encode(folder / f"{index}.mp4", sliding(40, 1.0 + index, 96, 64, seed=index), time_base=Fraction(1, 24))
    (folder / "broken.mp4").write_bytes(b"no video at all")
    Image.fromarray(sliding(1, 0, 64, 64, seed=9)[0]).save(folder / "a.png")
    return folder


def recipe_file(folder: Path, footage: Path, **train: Any) -> Path:
    recipe = {
        "name": "small",
        "out": str(folder / "out"),
        "sources": [{"videos": str(footage / "*.mp4")}, {"images": str(footage / "*.png")}],
        # Three of six files, whose paths are new each time: with one of them broken each side has two that give clips.
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
    return train_autoencoder(
        load_autoencoder_recipe(recipe_file(tmp_path_factory.mktemp("run"), footage)), in_process=True
    )


def test_the_shipped_recipe_validates() -> None:
    recipe = load_autoencoder_recipe(ROOT / "pipelines" / "recipes" / "autoencoder.yaml")
    assert recipe.train.preset == "small"
    with pytest.raises(
        ConfigError, match=r"autoencoder\.yaml.*train\.presett: unknown key 'presett'; did you mean 'preset'"
    ):
        load_autoencoder_recipe(ROOT / "pipelines" / "recipes" / "autoencoder.yaml", ["train.presett=large"])


def test_clips_show_their_sources_and_no_source_is_in_two_splits(
    footage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load_autoencoder_recipe(recipe_file(tmp_path, footage))
    folder = make_clips(recipe.sources, recipe.splits, recipe.clips, recipe.out)
    index = json.loads((folder / INDEX).read_text())
    files = sorted(folder.glob("*/*.npy"))
    assert index["clips"] == len(files) == 4 * 2 * 2 + 2
    assert list(index["failures"]) == [str(footage / "broken.mp4")]
    assert "broken.mp4: no clip: DecodeError" in caplog.text
    split_of: dict[str, set[str]] = {}
    for file in files:
        split_of.setdefault(file.name.partition("-")[0], set()).add(file.parent.name)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert set().union(*split_of.values()) == {"train", "val"}
    shapes = {np.load(file).shape for file in files}
    assert shapes == {(9, 26, 39, 3), (9, 39, 59, 3), (1, 32, 32, 3), (1, 48, 48, 3)}
    (large,) = [np.load(file) for file in files if file.name.startswith("0-") and file.name.endswith("-0001.npy")]
    start = round(24 * spans(40 / 24, 24, 9, 2)[0][0])
    source = sliding(40, 1.0, 96, 64, seed=0)[start : start + 9].mean(axis=-1)
    assert np.abs(large.mean((1, 2, 3)) - source.mean((1, 2))).max() < 3
    before = {file: file.stat().st_mtime_ns for file in files}
    assert make_clips(recipe.sources, recipe.splits, recipe.clips, recipe.out) == folder
    assert {file: file.stat().st_mtime_ns for file in files} == before


@given(st.floats(0, 100), st.sampled_from([8.0, 24.0, 29.97]), st.integers(1, 50), st.integers(1, 10))
def test_spans_lie_in_the_file_and_do_not_overlap(duration_s: float, fps: float, frames: int, most: int) -> None:
    found = spans(duration_s, fps, frames, most)
    assert 1 <= len(found) <= most
    assert all(1 <= number <= frames for _, number in found)
    ends = [start_s + number / fps for start_s, number in found]
    assert found[0][0] >= 0
    assert ends[-1] <= max(duration_s, 1 / fps) + 1e-6
    assert all(end_s <= start_s + 1e-6 for end_s, (start_s, _) in zip(ends, found[1:], strict=False))


@given(st.integers(1, 4000), st.integers(1, 4000), st.lists(st.integers(16, 1024), min_size=1, max_size=4))
def test_pictures_are_not_enlarged(width: int, height: int, sizes: list[int]) -> None:
    for w, h in fitting_sizes(width, height, sizes):
        assert w <= width
        assert h <= height


def test_trained_weights_encode_a_recipe_to_shards(footage: Path, weights: str, tmp_path: Path) -> None:
    text = {
        "name": "with-causal",
        "out": str(tmp_path / "out"),
        "sources": [{"videos": str(footage / "[0-3].mp4").replace("[0-3]", "{0,1,2,3}")}],
        "curate": [
            {"scan": {}},
            {"cut": {"min_s": 0.5}},
            {"caption": {"engine": "signals"}},
            {
                "encode": {
                    "autoencoder": {"name": "causal", "weights": weights},
                    "buckets": [{"size": 32, "frames": [9], "fps": 8, "aspects": ["1:1"]}],
                }
            },
        ],
    }
    recipe = parse(Recipe, parse_document(yaml.safe_dump(text), "recipe.yaml"))
    made = build_dataset(recipe, run_segments(recipe, inline))
    dataset = Dataset.open(made.manifest_uri, "train")
    assert dataset.info.autoencoder_identity == Causal(weights=weights).identity()
    assert verify(made.manifest_uri) == []
    sample = dataset.sample(0)
    assert sample.latent.shape == (16, 3, 4, 4)
    assert sample.last_frame_latent is not None
    assert sample.last_frame_latent.shape == (16, 1, 4, 4)
    assert torch.isfinite(sample.latent.float()).all()


def test_the_command_goes_on_and_prints_the_weights(
    footage: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(weights).parents[3] / "recipe.yaml"
    cli.train_autoencoder(recipe, None, "clips", True)
    cli.train_autoencoder(recipe, None, None, True)
    clips, path = capsys.readouterr().out.splitlines()
    assert (Path(clips) / INDEX).is_file()
    assert path == weights


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.crops=[{size: 64, frames: 5}]", r"train\.crops: .*train: of \d+ clips none has 5 frames of 64x64"),
        ("splits.val=0.0", r"leave none to train on or none to measure on"),
        ("out=s3://bucket/x", r"out s3://bucket/x: clips are mapped into memory"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_starts(
    footage: Path, tmp_path: Path, assignment: str, message: str
) -> None:
    recipe = load_autoencoder_recipe(recipe_file(tmp_path, footage), [assignment])
    with pytest.raises(ConfigError, match=message):
        train_autoencoder(recipe, in_process=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_of_ray_do_what_one_process_does(footage: Path, weights: str, tmp_path: Path) -> None:
    found = train_autoencoder(load_autoencoder_recipe(recipe_file(tmp_path, footage, workers=2)))
    two, one = (read_metrics(str(Path(uri).parents[1])) for uri in (found, weights))
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], rel=1e-3)
    assert Causal(weights=found).open().channels == 16
