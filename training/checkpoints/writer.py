"""Writing checkpoints by all ranks while training continues; each becomes visible only when it is complete."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from cluster import storage
from training.checkpoints.checkpoint import MARKER, Checkpoint, Marker, complete_checkpoints
from training.checkpoints.files import INDEX, Index, Layout, Snapshot, training_shards
from training.ema import Ema
from training.engine import Engine
from training.settings import TrainSettings


class CheckpointError(OSError):
    """A checkpoint could not be written; earlier ones are unchanged."""


class CheckpointWriter:
    """A writer of a run's checkpoints; every rank has one and makes the same calls at the same steps.

    A checkpoint begins with a copy in host memory, for which training waits. A thread then writes the rank's file. When
    `poll` finds that all ranks have done so, a thread of rank 0 writes the index, with the checksums of all files, and
    the marker, and removes old checkpoints. One checkpoint is written at a time.
    """

    def __init__(self, run_uri: str, engine: Engine, ema: Ema, settings: TrainSettings) -> None:
        self._run_uri, self._engine, self._ema, self._settings = run_uri, engine, ema, settings
        layout = Layout.of(engine)
        self._layouts = tuple(Layout.from_json(text) for text in engine.all_gather([layout.json()]))
        self._snapshot = Snapshot(layout, engine.device)
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._commit: Callable[[list[str]], None] | None = None
        """Function that rank 0 calls with the files' checksums when all are written; None from that call on."""
        self._job: Future[int | None] | None = None
        self._newest: Checkpoint | None = None

    def start(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin a checkpoint after `step` steps, after waiting for the one before.

        `state`, of JSON's types, is returned by `load_checkpoint`.
        """
        self.wait()
        uri = storage.join(self._run_uri, "checkpoints", f"step-{step:08d}")
        if self._engine.rank == 0:
            # An earlier try may have left an unfinished checkpoint here.
            storage.remove(uri)
        self._engine.barrier()
        checkpoint = Checkpoint(uri, step, self._engine.world_size, self._settings.zero_stage)
        index = Index(self._engine.updates, dict(state), self._layouts, ())
        self._snapshot.take(training_shards(self._engine, self._ema))
        self._newest = checkpoint
        self._commit = partial(_commit, self._run_uri, checkpoint, index, self._settings.keep_checkpoints)
        self._job = self._pool.submit(self._snapshot.write, uri)

    def poll(self) -> None:
        """Begin the next phase of the current checkpoint if all ranks have finished one.

        If a rank has failed, raises `CheckpointError` on all ranks.
        """
        if self._job is None:
            return
        # Read once, because the thread may end between two calls.
        done = self._job.done()
        error = self._job.exception() if done else None
        n_done, n_failed = self._engine.all_sum([done, error is not None])
        if n_failed:
            self._job = self._commit = None
            assert self._newest is not None
            failure = (
                f"the checkpoint of step {self._newest.step} could not be written by {n_failed:.0f} "
                f"of {self._engine.world_size} workers"
            )
            raise CheckpointError(f"{failure}: {error}" if error else failure) from error
        if n_done < self._engine.world_size:
            return
        checksum, commit = self._job.result(), self._commit
        self._commit = self._job = None
        if commit is not None:
            checksums = self._engine.all_gather([str(checksum)])
            self._job = self._pool.submit(partial(commit, checksums) if self._engine.rank == 0 else _do_nothing)

    def wait(self) -> Checkpoint | None:
        """Wait until the newest checkpoint is complete, and return it, or None if none was begun. Raises as `poll`
        does.
        """
        while self._job is not None:
            futures.wait([self._job])
            self.poll()
        return self._newest

    def close(self) -> None:
        """End the thread; a checkpoint that was not waited for stays incomplete."""
        self._pool.shutdown()


def _do_nothing() -> None:
    pass


def _commit(run_uri: str, checkpoint: Checkpoint, index: Index, keep: int, checksums: list[str]) -> None:
    """Write the index and the marker, which make the checkpoint complete, and remove others."""
    data = replace(index, checksums=tuple(int(checksum) for checksum in checksums)).to_bytes()
    storage.write_bytes(storage.join(checkpoint.uri, INDEX), data)
    storage.write_bytes(storage.join(checkpoint.uri, MARKER), Marker(checkpoint, storage.digest(data)).to_bytes())
    _remove_others(run_uri, checkpoint.step, keep)


def save_checkpoint(
    run_uri: str, step: int, engine: Engine, ema: Ema, settings: TrainSettings, state: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Write a checkpoint after `step` steps, wait for it and return it; all ranks call it."""
    with contextlib.closing(CheckpointWriter(run_uri, engine, ema, settings)) as writer:
        writer.start(step, state or {})
        written = writer.wait()
    assert written is not None
    return written


def _remove_others(run_uri: str, step: int, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints up to `step`, the one just written.

    Later ones are damaged, or the run would have resumed from them.
    """
    complete = [checkpoint.uri for checkpoint in complete_checkpoints(run_uri) if checkpoint.step <= step]
    kept = set(complete[-keep:])
    for entry in storage.list_files(storage.join(run_uri, "checkpoints")):
        folder = re.sub(r"(/step-\d+)/.*", r"\1", entry.uri)
        if folder not in kept and storage.exists(folder):
            # The marker goes first, so that a partly removed folder is not taken for a checkpoint.
            storage.remove(storage.join(folder, MARKER))
            storage.remove(folder)
