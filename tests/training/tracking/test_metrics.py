"""The records of a run have one line per step, whatever kills and restarts it had."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.tracking.metrics import (
    METRICS_FILE,
    SETTINGS_FILE,
    Metrics,
    last_records,
    progress_bar,
    read_metrics,
    read_settings,
)


def record(step: int, loss: float = 1.0) -> dict[str, float]:
    """Return a record with the values that the progress bar shows."""
    return {"step": step, "loss": loss, "tokens_per_s": 100.0}


def test_a_restart_drops_records_after_its_checkpoint(tmp_path: Path) -> None:
    with contextlib.closing(Metrics(str(tmp_path), 0, 1)) as metrics:
        for step in range(1, 8):
            metrics.add(record(step, loss=1.0))
    with contextlib.closing(Metrics(str(tmp_path), 4, 1)) as metrics:
        metrics.add(record(5, loss=2.0))
    losses = [(one["step"], one["loss"]) for one in read_metrics(str(tmp_path))]
    assert losses == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]


def test_settings_are_those_of_the_last_start(tmp_path: Path) -> None:
    assert read_settings(str(tmp_path)) is None
    for steps in (5, 9):
        with Metrics(str(tmp_path), 0, 1, (), {"steps": steps, "batch": {"tokens_per_step": 64}}):
            pass
        assert read_settings(str(tmp_path)) == {"steps": steps, "batch": {"tokens_per_step": 64}}


def test_a_line_that_a_kill_cut_off_is_ignored(tmp_path: Path) -> None:
    with contextlib.closing(Metrics(str(tmp_path), 0, 1)) as metrics:
        metrics.add(record(1))
    with (tmp_path / METRICS_FILE).open("a") as handle:
        handle.write('{"step": 2, "lo')
    assert [one["step"] for one in read_metrics(str(tmp_path))] == [1]
    assert last_records(str(tmp_path)) == [record(1)]
    with contextlib.closing(Metrics(str(tmp_path), 1, 1)) as metrics:
        metrics.add(record(2))
    assert [one["step"] for one in read_metrics(str(tmp_path))] == [1, 2]


@pytest.mark.parametrize("line", ["no json", "null", "[1]", '{"step": "1"}', '{"loss": 1.0}', ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS_FILE).write_text(f"{json.dumps(record(1))}\n{line}\n")
    with pytest.raises(ValueError, match=f"{METRICS_FILE}:2: is damaged"):
        read_metrics(str(tmp_path))


@pytest.mark.parametrize("text", ["[]", "null", "", '{"steps": "3"}'])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{SETTINGS_FILE}: is "):
        read_settings(str(tmp_path))


def test_tensorboard_has_the_losses(tmp_path: Path) -> None:
    with contextlib.closing(Metrics(str(tmp_path), 0, 2)) as metrics:
        for step in range(1, 5):
            metrics.add(record(step, loss=float(step)) | ({"val_loss": 9.0} if step == 3 else {}))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 2.0), (3, 3.0), (4, 4.0)]
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(3, 9.0)]


def test_a_run_without_steps_has_no_records(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path)) == []
    assert last_records(str(tmp_path)) == []


class RecordingBar:
    """A progress display that keeps the work done and the last note."""

    def __init__(self) -> None:
        self.done, self.note = 0.0, ""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.done, self.note = self.done + amount, note


def test_the_progress_bar_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, totals = RecordingBar(), []

    def progress(_: str, total: float) -> contextlib.AbstractContextManager[RecordingBar]:
        totals.append(total)
        return contextlib.nullcontext(bar)

    monkeypatch.setattr("training.tracking.metrics.progress", progress)
    monkeypatch.setattr("training.tracking.metrics.POLL_S", 0.005)
    with progress_bar(str(tmp_path), 4), contextlib.closing(Metrics(str(tmp_path), 0, 1)) as metrics:
        for step in range(1, 4):
            metrics.add(record(step, loss=float(step)))
            deadline = time.monotonic() + 120
            while bar.done < step and time.monotonic() < deadline:
                time.sleep(0.005)
            assert (bar.done, bar.note) == (step, f"loss {step}.0000, 100 tokens/s"), "the bar is behind the file"
        metrics.add(record(4))
    assert (bar.done, totals) == (4, [4]), "the last record is shown when the block ends"
