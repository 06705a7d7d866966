"""Processes that share each sample make the sample of one process, and the first one alone writes files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest
import torch.distributed as dist

from cluster.arrays import Pixels
from cluster.telemetry import console
from pipelines.commands.sample import sample
from tests.support.exported_models import write_untrained_export
from tests.support.ranks import run_ranks
from training.sampling.exported_model import ExportedModel
from training.sampling.ranks import sampling_ranks
from training.sampling.settings import SampleSettings

SAMPLES = [
    SampleSettings(prompt="a red circle", seconds=1, size="48x32", steps=3, guidance=2.0, name="video"),
    SampleSettings(prompt="a red circle", seconds=0, size="32x32", steps=3, name="image"),
    # The file of the first sample: no process may wait for the others to make it again.
    SampleSettings(prompt="a red circle", seconds=1, size="48x32", steps=3, guidance=2.0, name="video"),
]


def frames_of(path: Path) -> Pixels:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sample_as_rank(export: str, out: str, ports: tuple[int, int]) -> tuple[list[str], bool]:
    """Sample as a process that `torchrun` started, with a process group of its own."""
    dist.destroy_process_group()  # that of the tests
    os.environ["MASTER_PORT"] = str(ports[0])
    uris = sample(export, SAMPLES, f"{out}-{os.environ['RANK']}" if os.environ["RANK"] != "0" else out)
    # At the same port, this process might still find the store of the group that the other one is closing.
    os.environ["MASTER_PORT"] = str(ports[1])
    dist.init_process_group("gloo")
    return uris, console.quiet


@pytest.mark.slow
def test_two_processes_make_the_samples_of_one(tmp_path: Path) -> None:
    export = write_untrained_export(tmp_path / "export")
    alone = sample(export, SAMPLES, str(tmp_path / "alone"))
    with socket.socket() as probe, socket.socket() as other:
        for one in (probe, other):
            one.bind(("127.0.0.1", 0))
        ports = probe.getsockname()[1], other.getsockname()[1]
    (uris, quiet), (no_uris, other_quiet) = run_ranks(sample_as_rank, 2, export, str(tmp_path / "shared"), ports)
    assert [Path(uri).name for uri in uris] == [Path(uri).name for uri in alone]
    assert no_uris == []
    assert not quiet
    assert not other_quiet
    assert not (tmp_path / "shared-1").exists()
    for uri, expected in zip(uris, alone, strict=True):
        difference = np.abs(frames_of(Path(uri)).astype(int) - frames_of(Path(expected)))
        assert difference.max() <= 2
        assert difference.mean() < 0.05


def test_a_model_that_cannot_be_shared_is_named(tmp_path: Path) -> None:
    export = write_untrained_export(tmp_path)

    class Three:
        class group:
            @staticmethod
            def size() -> int:
                return 3

    with pytest.raises(ValueError, match=r"3 processes cannot share a sample of .*: .* does not divide the 2 heads"):
        ExportedModel(export, ranks=Three())  # type: ignore[arg-type]


def test_a_process_alone_joins_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with sampling_ranks() as ranks:
        assert ranks is None
    assert not dist.is_initialized()
