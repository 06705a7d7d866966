"""The ways in which a training run ends before its last step: a signal, or a loss that is not finite."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from cluster.telemetry import log


class Interrupted(KeyboardInterrupt):
    """The run stopped after a signal, and wrote a checkpoint before."""


class NonFiniteLossError(ArithmeticError):
    """The loss is infinite or not a number; the message names the samples. The weights were not updated with it."""


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has arrived since the block began.

    A second SIGINT raises `KeyboardInterrupt` immediately. Only the main thread receives signals; in another thread, as
    on Ray's workers, the function always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if arrived and number == signal.SIGINT:
            raise KeyboardInterrupt
        arrived.append(number)
        log.warning("stop requested; writing a checkpoint after this step")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
