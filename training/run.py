"""Start a training run, on Ray Train's workers or in this process. The only module of training that imports Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster import storage
from training.checkpoints.run_folder import run_folder
from training.device import default_device, memory_environment
from training.engine import NonFiniteGradientError
from training.loop import train_loop
from training.result import TrainResult, result
from training.settings import TrainSettings
from training.stopping import NonFiniteLossError
from training.tracking.metrics import shown

FAILURE = "failure.txt"
"""Why the run's last try ended for good, when no other try could end otherwise."""


def train(
    settings: TrainSettings, manifest_uri: str, out_uri: str, *, seed: int = 0, distributed: bool = True
) -> TrainResult:
    """Train a model on a data set of latents, going on from the newest checkpoint under `out_uri` if there is one.

    With `distributed`, Ray is connected already and `settings.workers` processes train, with DeepSpeed when they are several
    or ZeRO is on; workers that are lost are replaced, and all go on from the newest checkpoint. Otherwise this process
    trains alone, without Ray or DeepSpeed.

    The run's folder is named by its settings, data and seed (see `checkpoint.run_folder`); a run that is finished is returned
    as it is. Raises `ValueError` for settings that this way of training cannot honour.
    """
    run_uri = run_folder(settings, manifest_uri, out_uri, seed)
    if (done := result(settings, run_uri)) is not None:
        return done
    if not distributed and (settings.workers > 1 or settings.zero_stage > 0):
        raise ValueError(
            f"workers {settings.workers} with zero_stage {settings.zero_stage} need Ray; train in one process with workers 1, zero_stage 0"
        )
    with shown(run_uri, settings.steps):
        if distributed:
            arguments = {
                "settings": settings,
                "manifest_uri": storage.absolute(manifest_uri),
                "run_uri": run_uri,
                "seed": seed,
            }
            run_on_workers(train_loop, arguments, settings, run_uri)
        else:
            train_loop(settings, manifest_uri, run_uri, seed, default_device())
    done = result(settings, run_uri)
    assert done is not None, run_uri
    return done


def run_on_workers(
    loop: Callable[..., object], arguments: Mapping[str, Any], settings: TrainSettings, run_uri: str
) -> None:
    """Call `loop(device=..., **arguments)`, a module's function, in each of `settings.workers` processes of Ray Train; Ray is connected already.

    Workers that are lost are replaced, and all start again; with `settings.min_workers`, as many as there is room for. On CPUs each computes with
    `OMP_NUM_THREADS` threads, where this process was given that, or with its share of its node's cores. Raises
    `NonFiniteLossError` where all of them do, and `RuntimeError` with the workers' errors when replacements have run out.
    """
    n_gpus = ray.cluster_resources().get("GPU", 0)
    fewest = settings.min_workers or settings.workers
    if 0 < n_gpus < fewest:
        raise ValueError(
            f"workers {fewest} at least: the cluster has {n_gpus:g} GPUs and each worker needs one; lower workers or min_workers"
        )
    use_gpu = n_gpus > 0
    ray_uri = storage.join(run_uri, "ray")
    # What Ray Train keeps of an earlier try would be resumed in place of our checkpoints.
    storage.remove(ray_uri)
    # A finished run is noticed at the next look, so the default of 2 s is waited for at every end.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Ray sets it in its workers where the user has not, and there the two look alike.
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"loop": loop, "arguments": dict(arguments), "run_uri": run_uri, "threads": threads},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers if fewest == settings.workers else (fewest, settings.workers), use_gpu=use_gpu
        ),
        run_config=RunConfig(
            name="train",
            storage_path=ray_uri,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            worker_runtime_env=None if use_gpu else {"env_vars": memory_environment()},
        ),
    )
    failure_uri = storage.join(run_uri, FAILURE)
    storage.remove(failure_uri)
    try:
        trainer.fit()
    except WorkerGroupError as error:
        causes = "; ".join(
            f"worker {rank}: {type(cause).__name__}: {cause}" for rank, cause in sorted(error.worker_failures.items())
        )
        raise RuntimeError(f"training failed {1 + settings.max_failures} times, at last with {causes}") from error
    if storage.exists(failure_uri):
        raise NonFiniteLossError(storage.read_bytes(failure_uri).decode())


def _worker(arguments: dict[str, Any]) -> None:
    """One rank, in a process of Ray Train."""
    context = ray.train.get_context()
    # Ray gives each worker one thread; the cores of a node are shared out among its workers instead, unless the user has said otherwise.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(arguments["threads"] or max(1, cores // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    try:
        arguments["loop"](device=device, **arguments["arguments"])
    except (NonFiniteLossError, NonFiniteGradientError) as error:
        # All ranks raise this one together, and another try would only find it again: it must not look like a lost worker.
        if context.get_world_rank() == 0:
            storage.write_bytes(storage.join(arguments["run_uri"], FAILURE), str(error).encode())
