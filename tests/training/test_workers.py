"""The number of training workers: what `auto` means, and what a cluster has no room for."""

from __future__ import annotations

import pytest

from cluster.config import ConfigError, parse, parse_document
from cluster.resources import ClusterSize
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings
from training.settings import TrainSettings
from training.workers import WorkerRequest

AUTO = WorkerRequest("auto")


@pytest.mark.parametrize(
    ("cluster", "workers"),
    [
        (ClusterSize(cpus=1), 1),
        (ClusterSize(cpus=2), 1),
        (ClusterSize(cpus=3), 1),
        (ClusterSize(cpus=16), 8),
        (ClusterSize(cpus=16, gpus=1), 1),
        (ClusterSize(cpus=4, gpus=8), 8),
    ],
    ids=str,
)
def test_auto_is_one_per_gpu_or_pair_of_cores(cluster: ClusterSize, workers: int) -> None:
    assert AUTO.resolve(cluster) == workers
    assert WorkerRequest(3).resolve(cluster) == 3
    assert AUTO.check(cluster) is None


def test_auto_makes_whole_groups() -> None:
    assert WorkerRequest("auto", multiple_of=4).resolve(ClusterSize(cpus=8, gpus=7)) == 4
    with pytest.raises(ValueError, match="at least 4 workers need one GPU each, and the cluster has 3"):
        WorkerRequest("auto", multiple_of=4).check(ClusterSize(cpus=8, gpus=3))
    crops = (CropSettings(batch=12), CropSettings(batch=8))
    assert AutoencoderTrainSettings(crops=crops).worker_request.resolve(ClusterSize(cpus=20)) == 4


@pytest.mark.parametrize(
    ("request_", "cluster", "message"),
    [
        (WorkerRequest(2), ClusterSize(cpus=8, gpus=1), "at least 2 workers need one GPU each, and the cluster has 1;"),
        (WorkerRequest(2), ClusterSize(cpus=1), "at least 2 workers need one CPU core each, and the cluster has 1;"),
        (WorkerRequest(64, 3), ClusterSize(cpus=2), "at least 3 workers need one CPU core each, and the cluster has 2"),
    ],
    ids=str,
)
def test_too_many_workers_are_refused(request_: WorkerRequest, cluster: ClusterSize, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_.check(cluster)


def test_a_cluster_that_may_grow_is_waited_for() -> None:
    waits = WorkerRequest(8).check(ClusterSize(cpus=8, gpus=2, may_grow=True))
    assert waits == "at least 8 workers need one GPU each, and the cluster has 2; training waits until it has grown"
    assert WorkerRequest(8, min_workers=2).check(ClusterSize(cpus=8, gpus=2, may_grow=True)) is None


def test_only_some_requests_can_fail() -> None:
    fitting = (AUTO, WorkerRequest(1), WorkerRequest("auto", 1))
    assert all(request.always_fits for request in fitting)
    others = (WorkerRequest(2), WorkerRequest("auto", 2), WorkerRequest("auto", multiple_of=2))
    assert not any(request.always_fits for request in others)


@pytest.mark.parametrize("value", ["0", "-1", "two", "true", "1.5", "null"])
@pytest.mark.parametrize("model", [TrainSettings, AutoencoderTrainSettings])
def test_other_values_get_one_message(model: type[TrainSettings], value: str) -> None:
    with pytest.raises(ConfigError, match=r"^r:1: workers: write auto or a number from 1 \(got [^\n]*\)$"):
        parse(model, parse_document(f"workers: {value}", "r"))
    assert parse(model, parse_document("workers: auto", "r")).workers == "auto"


def test_cuda_asks_for_gpus_and_cpu_leaves_them() -> None:
    cluster = ClusterSize(cpus=8, gpus=4)
    cuda, cpu = WorkerRequest("auto", device="cuda"), WorkerRequest("auto", device="cpu")
    assert (cuda.resolve(cluster), cpu.resolve(cluster)) == (4, 4)
    assert (cuda.resolve(ClusterSize(cpus=8)), cpu.resolve(ClusterSize(cpus=12, gpus=1))) == (1, 6)
    assert (cuda.uses_gpus(ClusterSize(8)), cpu.uses_gpus(cluster), AUTO.uses_gpus(cluster)) == (True, False, True)
    assert (cuda.always_fits, cpu.always_fits, WorkerRequest(4, 2, device="cuda").fewest) == (False, True, 2)


def test_cuda_without_a_gpu_is_refused_or_waits() -> None:
    with pytest.raises(ValueError, match="1 worker needs a GPU, and the cluster has 0; add nodes with GPUs, or"):
        WorkerRequest("auto", device="cuda").check(ClusterSize(cpus=8))
    message = WorkerRequest(8, device="cuda").check(ClusterSize(cpus=8, gpus=2, may_grow=True))
    assert message == ("at least 8 workers need one GPU each, and the cluster has 2; training waits until it has grown")
