"""Fine-tuning of trained weights on a few drawn clips, whole and by adapter: it lowers the validation loss of the
weights that it starts from, and a stopped run resumes to the bit.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.published_models import ON_DRAWN, TEXT_KEYS, write_published
from training.assembly import TrainingRun
from training.autoencoders.causal import Causal
from training.checkpoints.adapter_export import read_model
from training.checkpoints.starting_weights import weights_to_start_from
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics
from training.validation import Validation

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"lr": 3e-3},
    "LoRA": {"lr": 2e-2, "adapter": {"rank": 8}},
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 14), (64, 32, 1, 10)], n_val=3)


@pytest.fixture(scope="module")
def shipped_manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a data set of clips that differ from the drawn world, in the latents of the shipped model."""
    folder = tmp_path_factory.mktemp("shipped")
    return write_dataset(folder, [(64, 64, 9, 12)], n_val=4, autoencoder_settings=Causal(weights="drawn-world"))


def loss_at_the_start(settings: TrainSettings, manifest: str, folder: Path) -> float:
    """Return the validation loss of the weights that a run starts from."""
    run = TrainingRun.open(settings, manifest, str(folder), 0, CPU)
    if run.base is None:
        weights = weights_to_start_from(settings)
        assert weights is not None
        run.start_from(weights)
    return Validation(manifest, settings, run.step_config, run.engine).record()["val_loss"]


def check_fine_tuning(settings: TrainSettings, manifest: str, folder: Path, share: float) -> str:
    """Check that a run ends below `share` of the validation loss at its start, also in two parts; return its export."""
    before = loss_at_the_start(settings, manifest, folder / "untrained")
    half = settings.model_copy(update={"steps": settings.steps // 2})
    whole = train_loop(settings, manifest, str(folder / "whole"), 0, CPU)
    after = read_metrics(str(folder / "whole"))[-1]["val_loss"]
    assert after < share * before, f"{before:.3f} to {after:.3f}"
    train_loop(half, manifest, str(folder / "parts"), 0, CPU)
    shutil.rmtree(folder / "parts" / "export")
    parts = train_loop(settings, manifest, str(folder / "parts"), 0, CPU)
    one, other = (read_model(result.export_uri)[1].state_dict() for result in (whole, parts))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    return whole.export_uri


def settings_of(steps: int, **changes: Any) -> TrainSettings:
    batch = PlanSettings(tokens_per_step=changes.pop("tokens_per_step", 60))
    options = {"warmup_steps": 0, "ema_decay": 0.5, "export": "last", "previews": {"every": 0}}
    every = {"validate_every": steps // 2, "checkpoint_every": steps // 2}
    return TrainSettings(steps=steps, batch=batch, **options, **every, **changes)


@pytest.mark.parametrize("way", ["whole", "LoRA"])
@pytest.mark.parametrize("family", ["wan", "ltx", "hunyuan"])
def test_a_published_model_learns_the_clips(family: str, way: str, manifest: str, tmp_path: Path) -> None:
    sizes = {"in_channels": 16, "out_channels": 16, TEXT_KEYS[family]: 128}
    model = validate(
        Diffusers, {"name": "diffusers", "path": str(write_published(tmp_path / "model", family, **sizes))}
    )
    settings = settings_of(40, model=model, **WAYS[way], **ON_DRAWN[family])
    export_uri = check_fine_tuning(settings, manifest, tmp_path, share=0.9)
    if way == "whole":
        # Published weights are needed to start, and not to sample.
        shutil.rmtree(tmp_path / "model")
        read_model(export_uri)


@pytest.mark.parametrize(("way", "lr"), [("whole", 1e-4), ("LoRA", 3e-3)])
def test_the_shipped_model_learns_the_clips(way: str, lr: float, shipped_manifest: str, tmp_path: Path) -> None:
    model = DiT(patch=(1, 2, 2), depth=8, dim=256, heads=8)
    options = WAYS[way] | {"lr": lr, "tokens_per_step": 100}
    settings = settings_of(8, model=model, init="drawn-world", **options)
    check_fine_tuning(settings, shipped_manifest, tmp_path, share=0.95)
