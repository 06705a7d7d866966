"""SIGTERM of a worker of Ray: it leaves after a checkpoint, and in time without one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from training import stopping
from training.stopping import LEAVING, leave_on_sigterm, stop_signals


@pytest.fixture
def ends() -> Iterator[list[int]]:
    """Return the signals for which the process would have ended without our handler."""
    ends: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: ends.append(number))
    leave_on_sigterm()
    yield ends
    signal.signal(signal.SIGTERM, before)
    LEAVING.clear()


def stop_is_requested() -> bool:
    """Return whether a loop that begins now, in a thread that is not the main one, is asked to stop."""
    asked: list[bool] = []

    def loop() -> None:
        with stop_signals() as stop_requested:
            asked.append(stop_requested())

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    return asked[0]


def test_sigterm_asks_to_stop_and_the_next_one_ends(ends: list[int]) -> None:
    assert not stop_is_requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop_is_requested()
    assert ends == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert ends == [signal.SIGTERM]


def test_a_worker_leaves_in_time_in_a_long_step(ends: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LEAVE_S", 0.3)
    start_s = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    while not ends:
        assert time.monotonic() < start_s + 30
        time.sleep(0.01)
    assert time.monotonic() >= start_s + 0.3
