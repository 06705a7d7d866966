"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from cluster.ray_settings import RaySettings
from cluster.telemetry import log


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
    )
    try:
        yield
    finally:
        ray.shutdown()


def cluster_resources() -> dict[str, float]:
    """Return the totals of the connected Ray cluster: CPU, GPU, memory (bytes), and custom resources."""
    return dict(ray.cluster_resources())
