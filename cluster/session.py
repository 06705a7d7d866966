"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import ray

from cluster.ray_settings import RaySettings
from cluster.resources import ClusterSize
from cluster.telemetry import log

PACKAGES = ("cluster", "captioning", "training", "pipelines")
"""Packages that workers import from where this process has them."""
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
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Ray logs at every start that its progress bars are disabled, and that token authentication is enabled. Only the
    # absence of authentication is worth a line.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(
        lambda record: "is enabled" not in record.getMessage()
    )
    local = settings.address == "local"
    log.info("starting Ray on this machine" if local else f"connecting to Ray at {settings.address}")
    ray.init(
        address=settings.address,
        num_cpus=settings.cpus if local else None,
        include_dashboard=False if local else None,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"worker_process_setup_hook": worker_setup(str(Path(__file__).parents[1]))},
    )
    try:
        yield
    finally:
        ray.shutdown()


def worker_setup(root: str) -> Callable[[], None]:
    """Return the function that every worker process calls before anything else.

    It points standard input at /dev/null: a worker, or a program that it starts, would be stopped by the kernel for
    touching the terminal, and its tasks would never end. It also imports the four packages from the folder `root`,
    where it exists: Ray puts the driver's current directory in front of the module path, and a user's own folder
    `training` there would hide ours.
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
