"""The head node of a cluster, stood in for by a server that accepts connections."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from ray.exceptions import RaySystemError

from cluster import head
from cluster.head import HeadLostError, head_is_lost, watched_head
from tests.support.paths import ROOT


class Head:
    """A server that accepts connections until it is lost, and may come back as the head node of another cluster."""

    def __init__(self) -> None:
        self.cluster_id = b"one"
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    @property
    def gcs_address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lose(self) -> None:
        self._socket.close()

    def restart(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", self.port))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Head:
    server = Head()
    monkeypatch.setattr(head, "ray", SimpleNamespace(get_runtime_context=lambda: server))
    monkeypatch.setattr(head, "GcsClient", lambda address: SimpleNamespace(cluster_id=server.cluster_id))
    monkeypatch.setattr(head, "POLL_S", 0.02)
    monkeypatch.setenv(head.RAY_WAITS, "1")
    return server


@pytest.fixture(autouse=True)
def _ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SIGINT raise `KeyboardInterrupt`. A process that a shell started in the background ignores it."""
    monkeypatch.setattr(head, "interrupt_main_thread", lambda: os.kill(os.getpid(), signal.SIGINT))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_after(call: Callable[[], None]) -> None:
    """Call a function and wait, as a command waits for its cluster."""
    call()
    try:
        time.sleep(60)
    finally:
        assert head_is_lost()


def test_a_lost_head_node_ends_the_command(server: Head) -> None:
    message = r"lost its head node \(127.*run the same command: finished work is kept$"
    with pytest.raises(HeadLostError, match=message), watched_head():
        wait_after(server.lose)
    assert not head_is_lost()


def test_a_restarted_head_node_knows_nothing(server: Head) -> None:
    def restart() -> None:
        server.lose()
        time.sleep(0.05)
        server.cluster_id = b"two"
        server.restart()

    with pytest.raises(HeadLostError), watched_head():
        wait_after(restart)


def test_a_head_node_with_a_store_may_restart(server: Head) -> None:
    with watched_head():
        server.lose()
        time.sleep(0.05)
        server.restart()
        time.sleep(0.5)
    assert not head_is_lost()


def test_errors_of_ray_after_the_loss_are_explained(server: Head) -> None:
    def fail() -> None:
        server.lose()
        raise RaySystemError("no connection")

    with pytest.raises(HeadLostError) as raised, watched_head():
        fail()
    assert isinstance(raised.value.__cause__, RaySystemError)


def test_other_errors_are_passed_on(server: Head) -> None:
    for error in (RaySystemError("of the store"), KeyboardInterrupt()):
        with pytest.raises(type(error)), watched_head():
            raise error


STUCK = """
import signal, time
from types import SimpleNamespace
from tests.cluster.test_head import Head, head

server = Head()
head.ray = SimpleNamespace(get_runtime_context=lambda: server)
head.GcsClient = lambda address: SimpleNamespace(cluster_id=b"one")
head.POLL_S = 0.02
signal.signal(signal.SIGINT, lambda *_: None)
with head.watched_head():
    server.lose()
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_command_that_does_not_end_is_ended() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), head.RAY_WAITS: "1"}
    ended = subprocess.run(
        [sys.executable, "-c", STUCK], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("failed the Ray cluster lost its head node (127.0.0.1:")
