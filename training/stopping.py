"""The ways in which a training run ends before its last step: a signal, or a loss that is not finite."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from cluster.telemetry import log

FAILURE_FILE = "failure.txt"
"""File in a run's folder with the name and message of an error of a run that would fail again the same way, so that
workers are not restarted."""


class Interrupted(KeyboardInterrupt):
    """The run stopped after a signal, and wrote a checkpoint before."""


class NonFiniteLossError(ArithmeticError):
    """The loss is infinite or not a number; the message names the samples. The weights were not updated with it."""


REQUESTED = threading.Event()
"""Set where another process asks this one to stop, as the driver asks Ray's workers."""
LEAVING = threading.Event()
"""Set in a worker of Ray that has received SIGTERM: all workers stop after a checkpoint, and this one leaves."""
LISTENING = threading.Event()
"""Set in a process in which a loop outside the main thread stops when it is asked to."""
LEAVE_S = 25.0
"""Longest time from SIGTERM to the end of a worker. Kubernetes kills what is still there after 30 s by default."""


@contextlib.contextmanager
def stop_signals(on_first: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has arrived since the block began.

    `on_first` is called when the first arrives. A second SIGINT raises `KeyboardInterrupt` immediately. Only the main
    thread receives signals; in another thread, as on Ray's workers, the function returns whether `REQUESTED` or
    `LEAVING` is set.
    """
    if threading.current_thread() is not threading.main_thread():
        LISTENING.set()
        try:
            yield lambda: REQUESTED.is_set() or LEAVING.is_set()
        finally:
            LISTENING.clear()
        return
    arrived: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if arrived and number == signal.SIGINT:
            raise KeyboardInterrupt
        arrived.append(number)
        if len(arrived) == 1:
            log.warning("stop requested; writing a checkpoint after this step; Ctrl-C once more stops without it")
            on_first()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_on_sigterm() -> None:
    """Let SIGTERM set `LEAVING` in this process, a worker of Ray, while it trains; call it in the main thread.

    A second SIGTERM, the end of `LEAVE_S`, and SIGTERM of a worker that does not train do what SIGTERM did before: they
    end the process at once.
    """
    before = signal.getsignal(signal.SIGTERM)
    assert callable(before), "Ray's workers have a handler of their own"

    def handle(number: int, frame: FrameType | None) -> None:
        if LEAVING.is_set() or not LISTENING.is_set():
            before(number, frame)
            return
        LEAVING.set()
        log.warning(f"SIGTERM: this worker leaves after a checkpoint of all workers, or in {LEAVE_S:.0f} s without one")
        deadline = threading.Timer(LEAVE_S, os.kill, (os.getpid(), signal.SIGTERM))
        deadline.daemon = True
        deadline.start()

    signal.signal(signal.SIGTERM, handle)
