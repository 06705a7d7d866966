"""Errors of all workers reach the process that started them as what they are, without Ray's restarts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
import torch
from ray.train import WorkerGroupError

from cluster import storage
from training import stopping
from training.checkpoints.checkpoint import MARKER, Checkpoint, Marker
from training.memory import DeviceMemoryError
from training.run import FAILURE_FILE, STOPPED_FILE, _fit, _worker, read_failure
from training.stopping import Interrupted, NonFiniteLossError


@pytest.fixture
def _first_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_local_world_size=lambda: 1, get_world_rank=lambda: 0, get_local_rank=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))


def train_until(error: BaseException, folder: Path, before: Callable[[], None] = lambda: None) -> None:
    """Run the first worker, whose loop calls `before` and raises an error."""

    def loop(device: torch.device) -> None:
        before()
        raise error

    config = {"loop": loop, "arguments": {}, "run_uri": str(folder), "threads": torch.get_num_threads()}
    _worker(config | {"device": "cpu"})


@pytest.mark.usefixtures("_first_worker")
@pytest.mark.parametrize("error", [DeviceMemoryError("needs 100 GiB\nof memory"), NonFiniteLossError("step 3: nan")])
def test_an_error_of_all_workers_is_passed_on(error: Exception, tmp_path: Path) -> None:
    train_until(error, tmp_path)
    found = read_failure(str(tmp_path / FAILURE_FILE))
    assert (type(found), str(found)) == (type(error), str(error))


@pytest.mark.usefixtures("_first_worker")
def test_only_what_the_driver_asked_for_is_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers stop for one that leaves, which is lost to the driver."""
    requested, leaving = threading.Event(), threading.Event()
    monkeypatch.setattr(stopping, "REQUESTED", requested)
    monkeypatch.setattr(stopping, "LEAVING", leaving)
    stopped = tmp_path / STOPPED_FILE
    train_until(Interrupted("stopped after step 3"), tmp_path)
    assert not stopped.exists()
    train_until(Interrupted("stopped after step 5"), tmp_path, requested.set)
    assert stopped.read_text() == "stopped after step 5"
    stopped.unlink()
    with pytest.raises(RuntimeError, match="SIGTERM; it left after a checkpoint"):
        train_until(Interrupted("stopped after step 7"), tmp_path, leaving.set)
    assert not stopped.exists()


@pytest.mark.usefixtures("_first_worker")
def test_a_gpu_that_torch_does_not_see_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"^torch [^ ]* on [^ ]* sees no GPU, and Ray gave this worker one; install"):
        _worker({"threads": torch.get_num_threads(), "device": "cuda"})


class Fits:
    """Trainers that lose their workers after a checkpoint of each of these steps, and then one that ends."""

    def __init__(self, run_uri: str, steps: list[int]) -> None:
        self._run_uri, self.steps = run_uri, steps

    def __call__(self) -> Fits:
        return self

    def fit(self) -> None:
        if self.steps:
            step = self.steps.pop(0)
            checkpoint = Checkpoint(f"{self._run_uri}/checkpoints/step-{step:08d}", step, 1, 0)
            storage.write_bytes(f"{checkpoint.uri}/{MARKER}", Marker(checkpoint, None).to_bytes())
            raise WorkerGroupError("lost", {1: RuntimeError(f"gone after {step}")})


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([4, 8, 12, 16, 20], None),
        ([4, 4, 8, 8], None),
        (
            [4, 8, 8, 8, 8, 12],
            "training failed 3 times without a new checkpoint, at last with worker 1: RuntimeError: gone",
        ),
    ],
)
def test_failures_count_since_the_newest_checkpoint(steps: list[int], message: str | None, tmp_path: Path) -> None:
    fits = Fits(str(tmp_path), list(steps))
    if message is None:
        _fit(fits, str(tmp_path), 2, lambda: False)  # type: ignore[arg-type]
    else:
        with pytest.raises(RuntimeError, match=message):
            _fit(fits, str(tmp_path), 2, lambda: False)  # type: ignore[arg-type]
        assert fits.steps == [8, 12]


def test_workers_lost_while_they_stop_are_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fit(Fits(str(tmp_path), [4, 8]), str(tmp_path), 2, lambda: True)  # type: ignore[arg-type]
