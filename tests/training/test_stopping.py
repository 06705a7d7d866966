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


class Loop:
    """A loop outside the main thread, which runs until the block ends."""

    def __enter__(self) -> Loop:
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with stop_signals() as self.stop_requested:
            self._begun.set()
            self._ended.wait()


def test_sigterm_asks_to_stop_and_the_next_one_ends(ends: list[int]) -> None:
    with Loop() as loop:
        assert not loop.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert loop.stop_requested()
        assert ends == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends == [signal.SIGTERM]


def test_sigterm_ends_a_worker_that_does_not_train(ends: list[int]) -> None:
    with Loop():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert ends == [signal.SIGTERM]
    assert not LEAVING.is_set()


def test_a_worker_leaves_in_time_in_a_long_step(ends: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LEAVE_S", 0.3)
    with Loop():
        start_s = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        while not ends:
            assert time.monotonic() < start_s + 30
            time.sleep(0.01)
        assert time.monotonic() >= start_s + 0.3
