"""The head node of the connected Ray cluster, without which nothing goes on: a command that loses it ends and says so.

A cluster keeps its state on its head node. Without it Ray waits for a minute, and then ends the process with lines of
its own log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of a compiled module
from ray.exceptions import RayError

from cluster.interrupts import interrupt_main_thread
from cluster.telemetry import tell

RAY_WAITS = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's environment variable with the seconds after which it ends a process that cannot reach the head node."""
RAY_WAITS_S = 60.0
"""Ray's default of it."""
LOST_SHARE = 0.5
"""Share of that time after which the head node is lost, and after which again the command ends in any case."""
POLL_S = 1.0
ANSWER_S = 5.0

_lost = threading.Event()


class HeadLostError(RuntimeError):
    """The head node of the cluster was lost, and all that runs there with it."""


def head_is_lost() -> bool:
    """Return whether the connected cluster has lost its head node, so that no call to Ray may be made."""
    return _lost.is_set()


@contextlib.contextmanager
def watched_head() -> Iterator[None]:
    """Raise `HeadLostError` out of the block, after an interrupt like that of Ctrl-C, when the connected cluster loses
    its head node.

    If the block has not ended by the time at which Ray would end the process, the process ends with that message.
    """
    watch = _Watch(ray.get_runtime_context().gcs_address)
    try:
        yield
    except BaseException as error:  # passed on, unless the loss is its cause
        if head_is_lost() or (isinstance(error, RayError) and watch.is_gone()):
            raise HeadLostError(watch.message) from (error if isinstance(error, Exception) else None)
        raise
    finally:
        watch.end()


class _Watch:
    """A thread that looks whether the head node at an address is there."""

    def __init__(self, address: str) -> None:
        self._address, self._cluster = address, GcsClient(address=address).cluster_id.hex()
        self._bound_s = LOST_SHARE * float(os.environ.get(RAY_WAITS, RAY_WAITS_S))
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="head-node", daemon=True).start()

    @property
    def message(self) -> str:
        """The error, with what to do."""
        return (
            f"the Ray cluster lost its head node ({self._address}) and all work that was under way; start the cluster "
            "again and run the same command: finished work is kept"
        )

    def end(self) -> None:
        """Look no more; there may be another cluster next."""
        self._ended.set()
        _lost.clear()

    def is_gone(self) -> bool:
        """Return whether the head node does not answer until it would be lost, or is that of another cluster now."""
        end_s = time.monotonic() + self._bound_s
        while not self._answers():
            if time.monotonic() > end_s:
                return True
            time.sleep(POLL_S)
        return not self._is_same()

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        except OSError:
            return False
        return True

    def _is_same(self) -> bool:
        """Return whether the head node knows this cluster; one that restarts without a store begins another."""
        try:
            cluster: str = GcsClient(address=self._address).cluster_id.hex()
        except RayError:
            return True  # it was lost since, which the next look finds
        return bool(cluster == self._cluster)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            if not self._answers() and self.is_gone():
                break
        if self._ended.is_set():
            return
        _lost.set()
        interrupt_main_thread()
        if not self._ended.wait(self._bound_s):
            tell(self.message, logging.ERROR, "failed")
            os._exit(1)
