"""How a training run ends before its last step: asked to by a signal, or by a loss that is not a number."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from cluster.telemetry import log


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and did so after writing a checkpoint."""


class NonFiniteLossError(ArithmeticError):
    """The loss is not a number; the message names the samples. The weights were not updated with it."""


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has arrived since the block began; a second SIGINT interrupts at once.

    Signals reach the main thread only; in a thread, as on Ray's workers, the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if arrived and number == signal.SIGINT:
            raise KeyboardInterrupt
        arrived.append(number)
        log.warning("asked to stop; writing a checkpoint after this step")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
