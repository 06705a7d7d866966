"""Checkpoints after steps, after a time and on request."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.drawn import write_dataset
from training import loop
from training.assembly import TrainingRun
from training.checkpoints import schedule
from training.checkpoints.checkpoint import complete_checkpoints
from training.checkpoints.schedule import SAVE_REQUESTED, CheckpointSchedule
from training.data.plan import PlanSettings
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.step_records import TakenStep

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a clock that stands still unless its `now_s` is changed."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def test_time_and_requests_ask_for_a_checkpoint(clock: SimpleNamespace) -> None:
    one = CheckpointSchedule(SETTINGS)
    assert [one.is_planned(done) for done in (11, 12, 100)] == [False, True, True]
    assert not one.asks()
    clock.now_s += 60
    assert one.asks()
    one.saved()
    assert not one.asks()
    SAVE_REQUESTED.set()
    assert one.asks()
    one.saved()
    assert not one.asks()


@pytest.mark.slow
def test_a_run_saves_by_time_and_on_request(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes 20 s, and in the seventh a node says that it is about to go."""
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=0)

    def slow_step(run: TrainingRun, step: int, *arguments: Any) -> TakenStep:
        clock.now_s += 20
        if step == 6:
            SAVE_REQUESTED.set()
        return take_step(run, step, *arguments)

    take_step = loop.take_step
    monkeypatch.setattr(loop, "take_step", slow_step)
    loop.train_loop(SETTINGS, manifest, str(tmp_path / "run"), 0, torch.device("cpu"))
    assert [checkpoint.step for checkpoint in complete_checkpoints(str(tmp_path / "run"))] == [3, 6, 7, 10, 12]
