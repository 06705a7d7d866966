"""Training runs on Ray Train's workers or in this process. The only module of `training` that imports Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

from cluster import storage
from cluster.metrics import RETRIES
from cluster.nodes import check_nodes, is_draining, living_nodes, wait_for_gpus
from cluster.session import cluster_size
from cluster.telemetry import log
from training import stopping
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.run_folder import run_folder
from training.checkpoints.schedule import SAVE_REQUESTED
from training.device import cpu_environment, device_for, gpu_environment
from training.engine import NonFiniteGradientError
from training.loop import train_loop
from training.memory import DeviceMemoryError
from training.result import TrainResult, find_result
from training.settings import TrainSettings
from training.stopping import FAILURE_FILE, Interrupted, NonFiniteLossError, leave_on_sigterm, stop_signals
from training.tracking.metrics import progress_bar
from training.workers import WorkerRequest

STOPPED_FILE = "stopped.txt"
"""File with the step after which workers stopped because they were asked to."""
STOP_FILE = "stop-request"
"""File by which this process asks the workers to stop. Rank 0 removes it as the answer."""

POLL_S = 1.0
"""Time between two looks of rank 0 for a request to stop, and of the driver for the answer."""
ANSWER_S = 4.0
"""Longest wait for the answer. Without one no worker trains yet, and the run ends without a checkpoint."""
DRAIN_POLL_S = 5.0
"""Time between two looks of the first worker of each node whether the node is about to go."""
ABORT_S = 3.0
"""Longest wait for Ray Train's controller to end the workers after Ctrl-C."""


def train(
    settings: TrainSettings, manifest_uri: str, out_uri: str, *, seed: int = 0, distributed: bool = True
) -> TrainResult:
    """Train a model on a data set of latents, from the newest checkpoint of the same run under `out_uri` if there is
    one.

    With `distributed`, `settings.workers` processes of Ray Train do so, and Ray must be connected. They use DeepSpeed
    if there are several or ZeRO is on. Lost workers are replaced, and all resume from the newest checkpoint. Otherwise
    this process trains alone, without Ray or DeepSpeed.

    The run's folder is named by its settings, data and seed (see `run_folder`). If the run is finished, its result is
    returned. Raises `ValueError` for settings that need several processes without `distributed`.
    """
    run_uri = run_folder(settings, manifest_uri, out_uri, seed)
    if (done := find_result(settings, run_uri)) is not None:
        return done
    if distributed:
        settings = settings.model_copy(update={"workers": number_of_workers(settings.worker_request)})
    elif settings.workers not in (1, "auto") or settings.zero_stage > 0:
        raise ValueError(
            f"workers {settings.workers} with zero_stage {settings.zero_stage} need Ray; "
            "train in one process with workers 1, zero_stage 0"
        )
    with progress_bar(run_uri, settings.steps):
        if distributed:
            arguments = {
                "settings": settings,
                "manifest_uri": storage.absolute(manifest_uri),
                "run_uri": run_uri,
                "seed": seed,
            }
            run_on_workers(train_loop, arguments, settings, run_uri)
        else:
            train_loop(settings, manifest_uri, run_uri, seed, device_for(settings.device))
    done = find_result(settings, run_uri)
    assert done is not None, run_uri
    return done


def number_of_workers(request: WorkerRequest) -> int:
    """Return the number of workers to train with on the connected Ray cluster, which is given time to start GPUs.

    Raises `ValueError` if the cluster has no room for them, and `RuntimeError` if it has not started the GPUs that
    `device: cuda` asks for.
    """
    cluster = cluster_size()
    request.check(cluster)
    if request.device == "cuda" and cluster.gpus < request.fewest:
        wait_for_gpus(request.fewest)
        cluster = cluster_size()
    return request.resolve(cluster)


def run_on_workers(
    loop: Callable[..., object], arguments: Mapping[str, Any], settings: TrainSettings, run_uri: str
) -> None:
    """Call `loop(device=..., **arguments)` in each of `settings.workers` processes of Ray Train; Ray must be connected.

    `loop` is a function of a module. Lost workers are replaced, and all start again; with `settings.min_workers`, as
    many start as there is room for. On CPUs each worker computes with `OMP_NUM_THREADS` threads if this process has
    that variable, and otherwise with its share of its node's cores. Raises `NonFiniteLossError` and
    `DeviceMemoryError` if all workers do, `Interrupted` if they stopped after a signal to this process, and
    `RuntimeError` with the workers' errors after `settings.max_failures` restarts without a new checkpoint.
    """
    cluster = cluster_size()
    if message := settings.worker_request.check(cluster):
        log.warning(message)
    assert settings.workers != "auto", "number_of_workers comes first"
    if len(living_nodes()) > 1:  # some may have joined since this process did
        check_nodes()
    use_gpu = settings.worker_request.uses_gpus(cluster)
    log.info(f"{settings.workers} workers train on {'one GPU each' if use_gpu else 'CPUs'}")
    if settings.device == "auto" and not use_gpu and cluster.may_grow:
        log.warning("the cluster has no GPU now; with train.device: cuda training waits for one")
    # Ray Train notices the end of a run at its next health check; by default these are 2 s apart.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Ray sets OMP_NUM_THREADS in workers if the user has not, so workers cannot tell whose value it is.
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None
    min_workers = settings.min_workers or settings.workers
    num_workers = settings.workers if min_workers == settings.workers else (min_workers, settings.workers)
    ray_uri = storage.join(run_uri, "ray")
    make_trainer = partial(
        _Trainer,
        _worker,
        train_loop_config={
            "loop": loop,
            "arguments": dict(arguments),
            "run_uri": run_uri,
            "threads": threads,
            "device": "cuda" if use_gpu else "cpu",
        },
        torch_config=_TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="train",
            storage_path=ray_uri,
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": gpu_environment() if use_gpu else cpu_environment()},
        ),
    )
    failure_uri, stopped_uri, stop_uri = (
        storage.join(run_uri, file) for file in (FAILURE_FILE, STOPPED_FILE, STOP_FILE)
    )
    for uri in (failure_uri, stopped_uri, stop_uri):
        storage.remove(uri)
    with _stopping_workers(stop_uri) as stop_asked:
        _fit(make_trainer, run_uri, settings.max_failures, stop_asked)
    if storage.exists(failure_uri):
        raise read_failure(failure_uri)
    if storage.exists(stopped_uri):
        message = storage.read_bytes(stopped_uri).decode()
        log.warning(message)
        raise Interrupted(message)


def _fit(make_trainer: Callable[[], _Trainer], run_uri: str, max_failures: int, stop_asked: Callable[[], bool]) -> None:
    """Run the workers to the end, and again when some are lost: `max_failures` times, counted from the newest
    checkpoint, since Ray Train counts over a whole run.

    Raises `RuntimeError` with the errors of the workers, and `KeyboardInterrupt` if they were lost while they stopped.
    """
    step, failures = _newest_step(run_uri), 0
    while True:
        # Ray Train would resume its own state of an earlier try instead of our checkpoints.
        storage.remove(storage.join(run_uri, "ray"))
        try:
            make_trainer().fit()
            return
        except WorkerGroupError as error:
            causes = "; ".join(
                f"worker {rank}: {type(cause).__name__}: {cause}"
                for rank, cause in sorted(error.worker_failures.items())
            )
            if stop_asked():
                raise KeyboardInterrupt from error
            newest = _newest_step(run_uri)
            step, failures = newest, 1 if newest > step else failures + 1
            if failures > max_failures:
                times = "" if failures == 1 else f" {failures} times without a new checkpoint"
                raise RuntimeError(f"training failed{times}, at last with {causes}") from error
            RETRIES.record(1, of="training")
            log.warning(
                f"workers were lost, time {failures} of {max_failures} since the newest checkpoint; training resumes "
                f"after step {step}: {causes.partition(chr(10))[0]}"
            )


def _newest_step(run_uri: str) -> int:
    checkpoint = newest_checkpoint(run_uri)
    return checkpoint.step if checkpoint else 0


def read_failure(failure_uri: str) -> NonFiniteLossError | DeviceMemoryError:
    """Return the error that `FAILURE_FILE` describes."""
    name, message = storage.read_bytes(failure_uri).decode().split("\n", 1)
    return DeviceMemoryError(message) if name == DeviceMemoryError.__name__ else NonFiniteLossError(message)


@contextlib.contextmanager
def _stopping_workers(stop_uri: str) -> Iterator[Callable[[], bool]]:
    """Let SIGINT or SIGTERM in the block ask the workers to stop after a checkpoint, and yield whether one arrived.

    If none answers, or at a second SIGINT, the block ends with `KeyboardInterrupt`.
    """
    ended = threading.Event()

    def ask() -> None:
        storage.write_bytes(stop_uri, b"")
        deadline_s = time.monotonic() + ANSWER_S
        while storage.exists(stop_uri):
            if ended.wait(POLL_S):
                return
            if time.monotonic() > deadline_s:
                os.kill(os.getpid(), signal.SIGINT)
                return

    with stop_signals(threading.Thread(target=ask, name="stop-request", daemon=True).start) as asked:
        try:
            yield asked
        finally:
            ended.set()


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray is untyped
    """A trainer that leaves SIGINT to the handler of its caller, which may raise `KeyboardInterrupt` in `fit`.

    Ray Train's own handler waits for its controller, which does not answer while it waits for resources; the process
    ends at the third Ctrl-C, with exit code 1.
    """

    controller: Any = None
    """Actor that runs the training."""

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller

    def fit(self) -> ray.train.Result:
        try:
            return super().fit()
        except KeyboardInterrupt:
            # The workers end with the connection to Ray, and where that is kept when the controller has answered.
            if self.controller is not None:
                with contextlib.suppress(RayError):
                    ray.get(self.controller.abort.remote(), timeout=ABORT_S)
            raise


class _Backend(_TorchBackend):  # type: ignore[misc]  # Ray is untyped
    """PyTorch's process group, in workers that SIGTERM does not end before a checkpoint.

    A handler has to be set in the main thread, in which workers run what they are told here; `_worker` runs in another.
    The setup hook of a worker comes too early: Ray sets its own handler after it.
    """

    def on_training_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(leave_on_sigterm)


class _TorchConfig(TorchConfig):  # type: ignore[misc]  # Ray is untyped
    """A process group of `_Backend`."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def _worker(config: dict[str, Any]) -> None:
    """Run the training loop of one rank in a process of Ray Train."""
    context = ray.train.get_context()
    # Ray gives each worker one thread. Unless the user set a number, a node's cores are divided among its workers.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config["threads"] or max(1, cores // context.get_local_world_size()))
    device = ray.train.torch.get_device()
    if device.type != config["device"]:
        raise RuntimeError(
            f"torch {torch.__version__} on {socket.gethostname()} sees no GPU, and Ray gave this worker one; install "
            "torch with CUDA and the driver there"
        )
    ended, is_first = threading.Event(), context.get_world_rank() == 0
    if is_first:
        stopping.REQUESTED.clear()
        watch = (storage.join(config["run_uri"], STOP_FILE), ended)
        threading.Thread(target=_watch_for_stop, args=watch, name="stop-request", daemon=True).start()
    # In every worker: Ray's local ranks are those of an IP address, which several nodes may share behind a proxy, in
    # containers or in a simulated cluster.
    threading.Thread(target=_watch_for_drain, args=(ended,), name="drain", daemon=True).start()
    try:
        config["loop"](device=device, **config["arguments"])
    except Interrupted as error:
        if stopping.LEAVING.is_set():  # to the driver, this is a lost worker
            raise RuntimeError(f"{socket.gethostname()}: SIGTERM; it left after a checkpoint") from error
        if is_first and stopping.REQUESTED.is_set():  # and not by another worker, which leaves
            storage.write_bytes(storage.join(config["run_uri"], STOPPED_FILE), str(error).encode())
    except (NonFiniteLossError, NonFiniteGradientError, DeviceMemoryError) as error:
        # All ranks raise this error, and would again after a restart, so it must not look like a lost worker.
        if is_first:
            text = f"{type(error).__name__}\n{error}"
            storage.write_bytes(storage.join(config["run_uri"], FAILURE_FILE), text.encode())
    finally:
        ended.set()


def _watch_for_stop(stop_uri: str, ended: threading.Event) -> None:
    """Look for a request to stop until there is one or training has ended; pass it on to the loop of this process."""
    while not ended.wait(POLL_S):
        with contextlib.suppress(OSError):  # of an object store; the next look may succeed
            if storage.exists(stop_uri):
                stopping.REQUESTED.set()
                storage.remove(stop_uri)
                return


def _watch_for_drain(ended: threading.Event) -> None:
    """Ask all workers for a checkpoint when this node is about to be taken from the cluster, for a spot node mostly.

    Training goes on until the node is gone, and then resumes from it on the other nodes.
    """
    SAVE_REQUESTED.clear()
    draining = False
    while not ended.wait(DRAIN_POLL_S):
        with contextlib.suppress(RayError, RuntimeError):  # the head node may restart
            draining = is_draining()
        if draining:
            log.warning(f"{socket.gethostname()} is about to leave the cluster; writing a checkpoint")
            SAVE_REQUESTED.set()
            return
