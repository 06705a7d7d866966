"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from cluster.head import watched_head
from cluster.nodes import check_nodes
from cluster.ray_settings import RaySettings
from cluster.resources import ClusterSize
from cluster.telemetry import LOG_VARIABLE, log

PACKAGES = ("cluster", "captioning", "training", "pipelines")
"""Packages that workers import from where this process has them."""
OUT_OF_MEMORY_RETRIES = 3
"""Times that Ray repeats a plain task after killing its worker for memory, after 1, 2 and 4 s. Then its rows are tried
one by one, as those of other workers that died."""
NODE_GROUP = "ray.io/node-group"
"""Label of nodes that something other than `ray start` manages."""


@contextlib.contextmanager
def ray_connection(settings: RaySettings) -> Iterator[None]:
    """Connect to Ray, or start it, for the length of the block; a Ray that is already connected is used and kept."""
    if ray.is_initialized():
        yield
        return
    # Ray's progress bars and its question about usage statistics would mix with the progress bars of this program.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # By default Ray repeats a task for ever whose worker it kills because the node runs out of memory.
    os.environ.setdefault("RAY_task_oom_retries", str(OUT_OF_MEMORY_RETRIES))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Ray logs at every start that its progress bars are disabled, and that token authentication is enabled. Only the
    # absence of authentication is worth a line.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(
        lambda record: "is enabled" not in record.getMessage()
    )
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "runtime_env": {
            "worker_process_setup_hook": worker_setup(str(Path(__file__).parents[1])),
            "env_vars": {name: os.environ[name] for name in (LOG_VARIABLE,) if name in os.environ},
        },
    }
    if settings.address == "local":
        log.info("starting Ray on this machine")
        with _private_ray():
            context = ray.init("local", num_cpus=settings.cpus, include_dashboard=False, **options)
            try:
                with watched_head():
                    yield
            finally:
                ray.shutdown()
                _remove_folder(Path(context.address_info["session_dir"]))
        return
    log.info(f"connecting to Ray at {settings.address}")
    context = ray.init(settings.address, **options)
    try:
        if context.dashboard_url:
            log.info(f"its dashboard is http://{context.dashboard_url}")
        check_nodes()
        with watched_head():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _private_ray() -> Iterator[None]:
    """Let a Ray that is started in the block listen on 127.0.0.1 alone, with a token that only this user can read.

    By default its servers listen on all interfaces, and the token, which is all that keeps others from running code
    here, is readable by every user of the machine. Ray has a loopback mode, its default on macOS and Windows.
    """
    _protect_token(Path.home() / ".ray" / "auth_token")
    with contextlib.ExitStack() as stack:
        previous = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
        if previous is None:  # the processes of Ray read it
            os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
            stack.callback(os.environ.pop, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, None)
            stack.callback(setattr, ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER)
            ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported
        yield


def _protect_token(path: Path) -> None:
    """Write the token with which Ray's processes know each other as Ray would, but so that only this user can read it.

    One that is there stays, and gets these rights.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    if wanted and not path.exists() and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        temporary = path.with_name(f"{path.name}-{os.getpid()}")
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another run was faster
            os.link(temporary, path)
        temporary.unlink()
    with contextlib.suppress(FileNotFoundError, PermissionError):  # it may be the file of an administrator
        path.chmod(0o600)
        path.parent.chmod(0o700)


def _remove_folder(folder: Path) -> None:
    """Remove the folder of a Ray that was stopped: its logs, sockets and spilled objects, about 1 MB at least.

    Processes that end a moment later may still write to it.
    """
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)
    latest = folder.with_name("session_latest")
    with contextlib.suppress(OSError):
        if latest.is_symlink() and Path(os.readlink(latest)).name == folder.name:
            latest.unlink()


def worker_setup(root: str) -> Callable[[], None]:
    """Return the function that every worker process calls before anything else.

    It points standard input at /dev/null: a worker, or a program that it starts, would be stopped by the kernel for
    touching the terminal, and its tasks would never end. It also imports the four packages from the folder `root`,
    where it exists: Ray puts the driver's current directory in front of the module path, and a user's own folder
    `training` there would hide ours. With a JSON log the worker's own lines, which Ray keeps in files, are JSON too.
    """

    # A local function is pickled by value, so that a worker can call it before it can import this module.
    def setup() -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        sys.path.insert(0, root)
        for package in PACKAGES:
            # A worker with a runtime environment of its own may lack them, and an error here would end it.
            with contextlib.suppress(ImportError):
                importlib.import_module(package)
        if os.environ.get(LOG_VARIABLE) == "json":
            with contextlib.suppress(ImportError):
                importlib.import_module("cluster.telemetry").configure_logging()
        sys.path.remove(root)

    return setup


def cluster_resources() -> dict[str, float]:
    """Return the totals of the connected Ray cluster: CPU, GPU, memory (bytes), and custom resources."""
    return dict(ray.cluster_resources())


def cluster_size() -> ClusterSize:
    """Return the CPU cores and GPUs of the connected Ray cluster.

    It may grow if a node belongs to a group, as those of Ray's cluster launcher, of its autoscaler and of KubeRay do.
    """
    total = ray.cluster_resources()
    may_grow = any(NODE_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"])
    return ClusterSize(total.get("CPU", 0.0), total.get("GPU", 0.0), may_grow)
