"""Errors of all workers reach the process that started them as what they are, without Ray's restarts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
import torch
from ray.train import WorkerGroupError

from cluster import storage
from training.checkpoints.checkpoint import MARKER, Checkpoint, Marker
from training.memory import DeviceMemoryError
from training.run import FAILURE_FILE, _fit, _worker, read_failure
from training.stopping import NonFiniteLossError


@pytest.mark.parametrize("error", [DeviceMemoryError("needs 100 GiB\nof memory"), NonFiniteLossError("step 3: nan")])
def test_an_error_of_all_workers_is_passed_on(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_local_world_size=lambda: 1, get_world_rank=lambda: 0, get_local_rank=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))

    def loop(device: torch.device) -> None:
        raise error

    config = {"loop": loop, "arguments": {}, "run_uri": str(tmp_path), "threads": torch.get_num_threads()}
    _worker(config | {"device": "cpu"})
    found = read_failure(str(tmp_path / FAILURE_FILE))
    assert (type(found), str(found)) == (type(error), str(error))


def test_a_gpu_that_torch_does_not_see_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_local_world_size=lambda: 1, get_world_rank=lambda: 0, get_local_rank=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
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
