"""`worldloom audit --model`: a model that knows eight clips by heart, and one that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.command_line import CommandLine
from tests.support.drawn import write_dataset
from training.models.dit import DiT
from training.run import train
from training.settings import TrainSettings

pytestmark = pytest.mark.slow

N_CLIPS, N_HELD_OUT, STEPS = 8, 100, 400


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe of eight training clips of 48x32 pixels and 9 frames, beside held-out ones."""
    folder = tmp_path_factory.mktemp("audit")
    manifest = write_dataset(folder / "tables", [(48, 32, 9, N_CLIPS + N_HELD_OUT)], n_val=N_HELD_OUT, seed=3)
    path = folder / "recipe.yaml"
    path.write_text(
        f"name: audited\nout: {folder / 'out'}\nmanifest: {manifest}\n"
        "evaluate: {steps: 8, guidance: 1}\nmarks: off\ntrain: {model: {name: dit}}\n"
    )
    return path


def trained(recipe: Path, steps: int) -> str:
    """Train a small model on the eight clips for some steps, and return its export."""
    settings = TrainSettings.model_validate(
        {
            "model": DiT(depth=3, dim=128, heads=4),
            "lr": 3e-3,
            "warmup_steps": steps // 20,
            "decay_steps": steps // 2,
            "steps": steps,
            "weight_decay": 0.0,
            "ema_decay": 0.9,
            "batch": {"tokens_per_step": 20_000},
            "validate_every": steps,
            "checkpoint_every": steps,
            "export": "last",
            "previews": {"every": 0},
            "workers": 1,
            "zero_stage": 0,
        }
    )
    (manifest,) = recipe.parent.glob("tables/**/_manifest.parquet")
    return train(settings, str(manifest), str(recipe.parent / "out"), distributed=False).export_uri


def test_a_model_that_knows_its_clips_by_heart_is_caught(recipe: Path, worldloom: CommandLine) -> None:
    torch.set_num_threads(1)
    ended = worldloom("audit", recipe, "--model", trained(recipe, STEPS), "--seeds", "1", "--json")
    assert ended.exit_code == 1, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["clips"], found["seeds"]) == (N_CLIPS, 1)
    by_test = {name: sum(one["flagged"] for one in test["findings"]) for name, test in found["tests"].items()}
    assert len(found["flagged"]) >= 7, by_test
    assert by_test["recall"] >= 7, by_test
    folder = Path(found["folder"])
    assert json.loads((folder / "summary.json").read_text()) == found
    assert len(list((folder / "generated").glob("*.mp4"))) == N_CLIPS
    for pair in found["tests"]["content"]["findings"][:6]:
        assert (folder / "training" / f"{pair['training']}.mp4").exists()


def test_a_model_that_knows_nothing_is_clear(recipe: Path, worldloom: CommandLine) -> None:
    ended = worldloom("audit", recipe, "--model", trained(recipe, 20), "--clips", "8", "--seeds", "1")
    assert ended.exit_code == 0, ended.stderr
    assert "no clip is learnt by heart" in ended.stdout
    assert "caption recall" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clips", "3"), "--clips belongs to the audit of a model; add --model"),
        (("--model", "drawn-wurld"), "unknown model 'drawn-wurld'"),
        (("--model", "drawn-world", "--pairs", "3"), "--pairs belongs to the audit of splits"),
        (("--model", "drawn-world"), "was trained with autoencoder causal-v1-"),
        (("--model", "drawn-world", "--set", "manifest=gone.parquet"), "gone.parquet: no such file"),
    ],
)
def test_bad_input_is_named(recipe: Path, worldloom: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    ended = worldloom("audit", recipe, *arguments)
    assert ended.exit_code == 2
    assert message in " ".join(ended.stderr.split()), ended.stderr
