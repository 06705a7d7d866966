"""`worldloom demo`: which training it runs, and the sheet of samples side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.commands import demo, run, sample, train
from pipelines.commands._sample_sheet import GAP, LINE, sample_sheet
from pipelines.recipe import Recipe
from training.autoencoders.causal import Causal
from training.checkpoints.model_card import read_card
from training.checkpoints.shipped import shipped_models
from training.result import TrainResult
from training.sampling.media import write_mp4, write_png

RED, BLUE = (200, 0, 0), (0, 0, 200)


def result(folder: Path) -> TrainResult:
    """Return the result of a run of two steps."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "step_s": 3.0}\n{"step": 2, "step_s": 4.0}\n')
    return TrainResult(str(folder / "export"), "", str(folder / "metrics.jsonl"), 2, (), (), 2)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Return the recipes that are run or trained, of which nothing is done."""
    seen: list[Recipe] = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "footage" / "demo").mkdir(parents=True)
    (tmp_path / "footage" / "demo" / "truth.json").write_text("{}")

    def write_samples(folder: Path, recipe: Recipe, colour: tuple[int, int, int]) -> list[str]:
        uris = [str(folder / f"{one.name}.{'mp4' if one.seconds else 'png'}") for one in recipe.sample]
        for uri in uris:
            image = np.full((64, 112, 3), colour, np.uint8)
            write_png(uri, image) if uri.endswith(".png") else write_mp4(uri, [image] * 3, 8)
        return uris

    def run_recipe(recipe: Recipe) -> run.Outcome:
        seen.append(recipe)
        samples = write_samples(tmp_path / "weights", recipe, RED)
        return run.Outcome(None, result(tmp_path / "run-weights"), samples, None, 1.0)

    def train_recipe(recipe: Recipe) -> TrainResult:
        seen.append(recipe)
        return result(tmp_path / "run-nothing")

    monkeypatch.setattr(run, "run", run_recipe)
    monkeypatch.setattr(run, "print_outcome", lambda *_: None)
    monkeypatch.setattr(train, "train", train_recipe)
    monkeypatch.setattr(sample, "sample_recipe", lambda one, *_: write_samples(tmp_path / "nothing", one, BLUE))
    return seen


@pytest.mark.slow
def test_from_weights_and_from_nothing_stand_side_by_side(recipes: list[Recipe], tmp_path: Path) -> None:
    demo.demo()
    first, second = (recipe.train for recipe in recipes)
    assert first is not None
    assert second is not None
    assert (first.init, second.init) == (demo.MODEL, None)
    same: dict[str, Any] = {"init": None, "lr": None}
    assert first.model_copy(update=same) == second.model_copy(update=same), "nothing else differs"
    sheet = np.asarray(Image.open(tmp_path / "runs" / "from-weights" / demo.SHEET))
    middle = sheet.shape[1] // 2
    tones = [
        (half == colour).all(-1).mean() for half in (sheet[:, :middle], sheet[:, middle:]) for colour in (RED, BLUE)
    ]
    assert tones[1] == tones[2] == 0, "each model's samples are in their own half"
    near = [
        (abs(half.astype(int) - colour).max(-1) < 12).mean()
        for half, colour in ((sheet[:, :middle], RED), (sheet[:, middle:], BLUE))
    ]
    assert min(near) > 0.4


def test_a_sheet_has_a_row_per_prompt() -> None:
    images = [np.full((1, 8, 100, 3), RED, np.uint8)] * 2
    sheet = sample_sheet(["one", "two"], {"left": images, "right": images})
    assert sheet.shape == (2 * GAP + LINE + 2 * (LINE + 16 + GAP), 3 * GAP + 2 * 2 * 102, 3)


def test_the_recipe_has_the_network_of_the_shipped_model() -> None:
    recipe = demo._recipe(())
    card = read_card(str(shipped_models()[demo.MODEL]))
    assert recipe.train is not None
    assert recipe.train.model == card.model
    assert recipe.train.objective == card.objective
    assert Causal(weights=demo.MODEL).identity() == card.autoencoder_identity
