"""A curation that keeps nothing ends before training, with its report and the reasons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.support.command_line import CommandLine


@pytest.fixture
def black_image(tmp_path: Path) -> Path:
    """Return a recipe of one black image, which its threshold drops."""
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "black.png")
    recipe = {
        "name": "black",
        "out": str(tmp_path / "out"),
        "sources": [{"images": str(tmp_path / "*.png")}],
        "curate": [
            {"scan": {}},
            {"cut": {}},
            {"keep": {"luma": {"min": 0.05}}},
            {"caption": {"engine": "signals"}},
            {"encode": {"autoencoder": {"name": "linear"}, "buckets": [{"size": 64, "frames": [1], "fps": 8}]}},
        ],
        "train": {"model": {"name": "dit", "depth": 1, "dim": 64, "heads": 2}, "steps": 1, "warmup_steps": 0},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
def test_a_run_that_keeps_nothing_reports_what_took_it(black_image: Path, worldloom: CommandLine) -> None:
    ended = worldloom("run", black_image, "--inline")
    assert ended.exit_code == 1
    assert "images: 1 = 1 kept (0 contribute clips) + 0 dropped" in ended.stdout
    message = "no clip was kept of 1 image and 1 clip, so there is nothing to train on: "
    assert message + "1 clip dropped by keep (luma under 0.05)" in ended.stderr
    out = black_image.parent / "out"
    assert (out / "report.html").is_file()
    assert not list(out.glob("run-*"))
    accounts = json.loads((out / "ledger.json").read_text())
    assert [account["contributing"] for account in accounts] == [0, 0, None]


@pytest.mark.slow
def test_a_curation_without_encode_may_keep_nothing(black_image: Path, worldloom: CommandLine) -> None:
    recipe = yaml.safe_load(black_image.read_text())
    del recipe["train"], recipe["curate"][-1]
    black_image.write_text(yaml.safe_dump(recipe))
    ended = worldloom("curate", black_image, "--inline")
    assert ended.exit_code == 0, ended.stderr
    assert "1 kept (0 contribute clips)" in ended.stdout
