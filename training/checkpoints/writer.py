"""Checkpoints to go on from, written by all ranks and visible only when whole."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from cluster import storage
from training.checkpoints.checkpoint import MARKER, Checkpoint, whole_checkpoints
from training.checkpoints.files import Index, Layout, Snapshot, shards_of
from training.ema import Ema
from training.engine import Engine
from training.settings import TrainSettings


class CheckpointError(OSError):
    """A checkpoint could not be written; the ones before it are as they were."""


class Writer:
    """Writes the checkpoints of a run while training goes on; every rank has one and makes the same calls at the same steps.

    A checkpoint begins with a copy in host memory, which training waits for. A thread then writes the rank's file. When `poll` finds that
    all ranks have, a thread of rank 0 writes the index and the marker and removes old checkpoints. One is under way at a time.
    """

    def __init__(self, run_uri: str, engine: Engine, ema: Ema, settings: TrainSettings) -> None:
        self._run_uri, self._engine, self._ema, self._settings = run_uri, engine, ema, settings
        layout = Layout.of(engine)
        self._layouts = tuple(Layout.from_json(text) for text in engine.gather([layout.json()]))
        self._snapshot = Snapshot(layout, engine.device)
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._commit: Callable[[], None] | None = None
        """What rank 0 does when all files are written; None once it does it."""
        self._job: Future[None] | None = None
        self._reached: Checkpoint | None = None

    def start(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin a checkpoint after `step` steps; `state`, of JSON's types, is what `load` returns. Waits for the one before."""
        self.wait()
        uri = storage.join(self._run_uri, "checkpoints", f"step-{step:08d}")
        if self._engine.rank == 0:
            # What an earlier try left unfinished here.
            storage.remove(uri)
        self._engine.barrier()
        reached = Checkpoint(uri, step, self._engine.world_size, self._settings.zero_stage)
        index = Index(self._engine.updates, dict(state), self._layouts)
        self._snapshot.take(shards_of(self._engine, self._ema))
        self._reached, self._commit = (
            reached,
            partial(_commit, self._run_uri, reached, index, self._settings.keep_checkpoints),
        )
        self._job = self._pool.submit(self._snapshot.write, uri)

    def poll(self) -> None:
        """Take the checkpoint under way a phase further where all ranks are done with one. Raises, on all ranks, what went wrong on any."""
        if self._job is None:
            return
        # Asked once: the thread may end between two questions.
        done = self._job.done()
        error = self._job.exception() if done else None
        n_done, n_failed = self._engine.sum([done, error is not None])
        if n_failed:
            self._job = self._commit = None
            assert self._reached is not None
            failure = f"the checkpoint of step {self._reached.step} could not be written by {n_failed:.0f} of {self._engine.world_size} workers"
            raise CheckpointError(f"{failure}: {error}" if error else failure) from error
        if n_done < self._engine.world_size:
            return
        commit, self._commit, self._job = self._commit, None, None
        if commit is not None:
            self._job = self._pool.submit(commit if self._engine.rank == 0 else _nothing)

    def wait(self) -> Checkpoint | None:
        """Wait until the last checkpoint that was begun is whole, and return it; None when none was. Raises as `poll` does."""
        while self._job is not None:
            futures.wait([self._job])
            self.poll()
        return self._reached

    def close(self) -> None:
        """Let the thread end; a checkpoint under way that was not waited for stays unfinished."""
        self._pool.shutdown()


def _nothing() -> None:
    pass


def _commit(run_uri: str, reached: Checkpoint, index: Index, keep: int) -> None:
    index.write(reached.uri)
    storage.write_bytes(storage.join(reached.uri, MARKER), json.dumps(asdict(reached)).encode())
    _prune(run_uri, keep)


def save_checkpoint(
    run_uri: str, step: int, engine: Engine, ema: Ema, settings: TrainSettings, state: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Write a checkpoint after `step` steps, and wait for it; all ranks call it."""
    with contextlib.closing(Writer(run_uri, engine, ema, settings)) as writer:
        writer.start(step, state or {})
        written = writer.wait()
    assert written is not None
    return written


def _prune(run_uri: str, keep: int) -> None:
    """Remove all but the newest `keep` whole checkpoints."""
    kept = {checkpoint.uri for checkpoint in whole_checkpoints(run_uri)[-keep:]}
    for entry in storage.list_files(storage.join(run_uri, "checkpoints")):
        folder = re.sub(r"(/step-\d+)/.*", r"\1", entry.uri)
        if folder not in kept and storage.exists(folder):
            # The marker goes first: a folder half removed must not pass for a checkpoint.
            storage.remove(storage.join(folder, MARKER))
            storage.remove(folder)
