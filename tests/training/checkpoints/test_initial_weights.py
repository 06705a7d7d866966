"""Runs that start from the weights of an export, of a checkpoint or of a shipped model."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster import storage
from tests.support.drawn import write_dataset
from tests.support.ranks import run_ranks
from training.assembly import TrainingRun
from training.checkpoints import initial_weights
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.export import read_export
from training.checkpoints.initial_weights import find_initial_weights
from training.checkpoints.model_card import read_card
from training.data.footer import DamagedError
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.dit import DiT
from training.settings import TrainSettings

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
MODEL = DiT(depth=2, dim=32, heads=2)
SETTINGS = TrainSettings(
    model=MODEL, batch=PlanSettings(tokens_per_step=60), lr=1e-2, steps=4, warmup_steps=0, validate_every=0
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 14), (48, 32, 1, 10)], n_val=2)


@pytest.fixture(scope="module")
def trained(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a finished run."""
    run_uri = str(tmp_path_factory.mktemp("trained"))
    train_loop(SETTINGS, manifest, run_uri, 0, CPU)
    return run_uri


@pytest.fixture
def checkpoint(trained: str) -> str:
    found = newest_checkpoint(trained)
    assert found is not None
    return found.uri


def averaged_weights(run_uri: str) -> dict[str, Tensor]:
    """Return the averaged weights of an export by name."""
    return read_export(f"{run_uri}/export")[1].state_dict()


def start(manifest: str, init: str, stage: int = 0, workers: int = 1, model: DiT = MODEL) -> dict[str, Tensor]:
    """Return the weights of a new run after its start from `init`, whose averages are checked to be the same."""
    settings = SETTINGS.model_copy(update={"zero_stage": stage, "workers": workers, "model": model, "init": init})
    run = TrainingRun.open(settings, manifest, "unused", 1, CPU)
    run.start_from(find_initial_weights(init))
    for average, weight in zip(run.ema.averages, run.engine.weight_shards(), strict=True):
        assert torch.equal(average, weight)
    assert run.engine.updates == 0
    return run.engine.full_parameters(on_all_ranks=True)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_export_and_checkpoint_give_the_averaged_weights(manifest: str, trained: str, checkpoint: str) -> None:
    expected = averaged_weights(trained)
    assert not same(expected, read_export(f"{trained}/export", averaged=False)[1].state_dict())
    assert same(start(manifest, f"{trained}/export"), expected)
    assert same(start(manifest, checkpoint), expected)


def test_ranks_of_zero_read_their_shards(manifest: str, trained: str, checkpoint: str) -> None:
    expected = averaged_weights(trained)
    for source, stage in ((f"{trained}/export", 3), (checkpoint, 2)):
        for weights in run_ranks(start, 2, manifest, source, stage, 2):
            assert same(weights, expected)


def test_a_run_starts_anew_and_says_from_what(manifest: str, trained: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"init": f"{trained}/export", "steps": 1})
    first = train_loop(settings, manifest, str(tmp_path / "run"), 0, CPU)
    card = read_card(first.export_uri)
    assert (card.step, card.init) == (1, f"{trained}/export")
    assert read_card(f"{trained}/export").init is None


def test_a_resumed_run_needs_its_first_weights_no_more(manifest: str, trained: str, tmp_path: Path) -> None:
    init = str(tmp_path / "copy")
    for name in ("model.json", "model.safetensors"):
        storage.write_bytes(f"{init}/{name}", storage.read_bytes(f"{trained}/export/{name}"))
    settings = SETTINGS.model_copy(update={"init": init})
    whole = train_loop(settings, manifest, str(tmp_path / "whole"), 0, CPU)
    train_loop(settings.model_copy(update={"steps": 2}), manifest, str(tmp_path / "run"), 0, CPU)
    storage.remove(init)
    resumed = train_loop(settings, manifest, str(tmp_path / "run"), 0, CPU)
    assert read_card(resumed.export_uri).weights == read_card(whole.export_uri).weights


def test_weights_that_do_not_fit_are_named(
    manifest: str, trained: str, checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    deeper = DiT(depth=3, dim=32, heads=2, mlp_ratio=2)
    for source in (f"{trained}/export", checkpoint):
        with caplog.at_level(logging.WARNING):
            weights = start(manifest, source, model=deeper)
        text = caplog.text
        caplog.clear()
        assert "weights of another shape start from random values: blocks.0.feed_forward" in text
        assert "weights that it lacks start from random values: blocks.2." in text
        expected = averaged_weights(trained)
        assert torch.equal(weights["patch_in.weight"], expected["patch_in.weight"])
        assert weights["blocks.0.feed_forward.0.weight"].shape != expected["blocks.0.feed_forward.0.weight"].shape
    with pytest.raises(ValueError, match="no weight has the name and shape"):
        start(manifest, f"{trained}/export", model=DiT(depth=1, dim=48, heads=1, patch=(1, 1, 1)))


def test_damaged_weights_are_refused(trained: str, manifest: str, tmp_path: Path) -> None:
    export = tmp_path / "export"
    for name in ("model.json", "model.safetensors"):
        storage.write_bytes(str(export / name), storage.read_bytes(f"{trained}/export/{name}"))
    data = bytearray((export / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (export / "model.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        start(manifest, str(export))


def test_a_shipped_model_is_found_by_name(
    trained: str, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipped model has bf16 weights, and no others than the averages."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    tensors = load_file(f"{trained}/export/model.safetensors")
    kept = {name: value.bfloat16() for name, value in tensors.items() if not name.startswith("raw.")}
    save_file(kept, folder / "model.safetensors")
    digest = storage.digest((folder / "model.safetensors").read_bytes())
    card = read_card(f"{trained}/export").model_copy(update={"weights": digest})
    (folder / "model.json").write_bytes(card.to_bytes())
    monkeypatch.setattr(initial_weights, "shipped_models", lambda: {"tiny": folder})
    expected = {name: value.bfloat16().float() for name, value in averaged_weights(trained).items()}
    assert same(start(manifest, "tiny"), expected)
    with pytest.raises(ValueError, match="tiny"):
        find_initial_weights("tinny")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither an export"):
        find_initial_weights(str(tmp_path))
