"""Checkpoints: visible only when whole, pruned, refused by another sharding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.ema import Ema
from training.engine import Engine, TorchEngine, open_engine
from training.models.dit import DiT
from training.settings import TrainSettings

SETTINGS = TrainSettings(model=DiT(depth=1, dim=32, heads=2), keep_checkpoints=2)


def fresh(seed: int = 0) -> tuple[Engine, Ema]:
    torch.manual_seed(seed)
    engine = open_engine(SETTINGS.model.build(4, 8), SETTINGS, torch.device("cpu"))
    return engine, Ema(engine.shards(), 0.99)


def test_a_checkpoint_brings_weights_and_average_back(tmp_path: Path) -> None:
    engine, ema = fresh()
    ema.averages[0].fill_(3.0)
    saved = checkpoint.save(str(tmp_path), 5, engine, ema, SETTINGS)
    assert checkpoint.newest(str(tmp_path)) == saved
    other, other_ema = fresh(seed=1)
    checkpoint.load(saved, other, other_ema, SETTINGS)
    assert all(a.equal(b) for a, b in zip(engine.shards(), other.shards(), strict=True))
    assert all(a.equal(b) for a, b in zip(ema.averages, other_ema.averages, strict=True))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    engine, ema = fresh()
    for step in (5, 10, 100, 15):
        checkpoint.save(str(tmp_path), step, engine, ema, SETTINGS)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000015", "step-00000100"]


@pytest.mark.parametrize("dies_in", ["engine", "marker"])
def test_a_checkpoint_cut_short_is_no_checkpoint(dies_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ema = fresh()
    checkpoint.save(str(tmp_path), 5, engine, ema, SETTINGS)

    def die(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(*((TorchEngine, "save", die) if dies_in == "engine" else (checkpoint.storage, "write_bytes", die)))
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(str(tmp_path), 10, engine, ema, SETTINGS)
    assert [one.step for one in checkpoint.whole(str(tmp_path))] == [5]
    assert checkpoint.save(str(tmp_path), 10, engine, ema, SETTINGS).step == 10
    assert [one.step for one in checkpoint.whole(str(tmp_path))] == [5, 10]


def test_another_sharding_is_refused(tmp_path: Path) -> None:
    engine, ema = fresh()
    saved = checkpoint.save(str(tmp_path), 5, engine, ema, SETTINGS)
    two = checkpoint.Checkpoint(saved.uri, 5, workers=2, zero_stage=3)
    with pytest.raises(ValueError, match="written by 2 workers with zero_stage 3, and this run has 1 workers with zero_stage 0"):
        checkpoint.load(two, engine, ema, SETTINGS)


def test_a_run_is_named_by_what_shapes_it(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    manifest.write_bytes(b"rows")

    def folder(seed: int = 0, **changes: object) -> str:
        return checkpoint.run_folder(SETTINGS.model_copy(update=changes), str(manifest), "out", seed)

    assert folder() == folder(steps=7, checkpoint_every=1, workers=2)
    assert len({folder(), folder(lr=0.5), folder(seed=1), folder(model=DiT(depth=2, dim=32, heads=2))}) == 4
    before = folder()
    manifest.write_bytes(b"other rows")
    assert folder() != before
