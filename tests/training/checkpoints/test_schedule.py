"""Checkpoints after steps, after a time and on request."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.support.drawn import write_dataset
from training.checkpoints import schedule
from training.checkpoints.checkpoint import complete_checkpoints
from training.checkpoints.schedule import SAVE_REQUESTED, CheckpointSchedule
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.dit import DiT
from training.settings import TrainSettings

SETTINGS = TrainSettings(
    model=DiT(depth=1, dim=32, heads=2),
    steps=12,
    batch=PlanSettings(tokens_per_step=100),
    warmup_steps=2,
    checkpoint_every=100,
    checkpoint_every_s=60,
    keep_checkpoints=9,
    validate_every=0,
)


def test_time_and_requests_ask_for_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: clock[0])
    one = CheckpointSchedule(SETTINGS)
    assert [one.is_planned(done) for done in (11, 12, 100)] == [False, True, True]
    assert not one.asks()
    clock[0] += 60
    assert one.asks()
    one.saved()
    assert not one.asks()
    SAVE_REQUESTED.set()
    assert one.asks()
    one.saved()
    assert not one.asks()


@pytest.mark.slow
def test_a_run_saves_by_time_and_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes 20 s of a clock that jumps, and after the seventh a node is about to go."""
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=0)
    steps = itertools.count()

    def asks(self: CheckpointSchedule) -> bool:
        if (step := next(steps)) == 6:
            SAVE_REQUESTED.set()
        self._saved_s -= 20
        return real(self) or step < 0

    real = CheckpointSchedule.asks
    monkeypatch.setattr(CheckpointSchedule, "asks", asks)
    train_loop(SETTINGS, manifest, str(tmp_path / "run"), 0, torch.device("cpu"))
    assert [checkpoint.step for checkpoint in complete_checkpoints(str(tmp_path / "run"))] == [3, 6, 7, 10, 12]
