"""When a checkpoint is written: after a number of steps, after a time, and when it is asked for."""

from __future__ import annotations

import threading
import time

from training.settings import TrainSettings

SAVE_REQUESTED = threading.Event()
"""Set in a process of a run to ask for one more checkpoint, as when a node of the cluster is about to go."""


class CheckpointSchedule:
    """The checkpoints of a run. Every rank has one, and all write a checkpoint if one of them asks for it."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._saved_s = time.monotonic()

    def is_planned(self, done: int) -> bool:
        """Return whether one is written after `done` steps in any case."""
        return done % self._settings.checkpoint_every == 0 or done == self._settings.steps

    def asks(self) -> bool:
        """Return whether this rank asks for one now."""
        return SAVE_REQUESTED.is_set() or time.monotonic() - self._saved_s >= self._settings.checkpoint_every_s

    def saved(self) -> None:
        """Begin anew, as one is being written."""
        SAVE_REQUESTED.clear()
        self._saved_s = time.monotonic()
