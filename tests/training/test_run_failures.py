"""Errors of all workers reach the process that started them as what they are, without Ray's restarts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
import torch

from training.memory import DeviceMemoryError
from training.run import FAILURE_FILE, _worker, read_failure
from training.stopping import NonFiniteLossError


@pytest.mark.parametrize("error", [DeviceMemoryError("needs 100 GiB\nof memory"), NonFiniteLossError("step 3: nan")])
def test_an_error_of_all_workers_is_passed_on(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_local_world_size=lambda: 1, get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))

    def loop(device: torch.device) -> None:
        raise error

    config = {"loop": loop, "arguments": {}, "run_uri": str(tmp_path), "threads": torch.get_num_threads()}
    _worker(config | {"device": "cpu"})
    found = read_failure(str(tmp_path / FAILURE_FILE))
    assert (type(found), str(found)) == (type(error), str(error))


def test_a_gpu_that_torch_does_not_see_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_local_world_size=lambda: 1, get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"^torch [^ ]* on [^ ]* sees no GPU, and Ray gave this worker one; install"):
        _worker({"threads": torch.get_num_threads(), "device": "cuda"})
