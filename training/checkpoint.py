"""Checkpoints to go on from, written by all ranks and visible only when whole."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cluster import storage
from training.ema import Ema
from training.engine import Engine
from training.settings import TrainSettings

MARKER = "complete.json"
"""Written last, by rank 0, when every rank's files are in place; a folder without it is no checkpoint."""
FREE_TO_CHANGE = frozenset(("steps", "workers", "zero_stage", "max_failures", "checkpoint_every", "keep_checkpoints", "validate_every", "log_every"))
"""Settings that may differ when a run goes on; a change of any other starts a run of its own."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and how it was written."""

    uri: str
    step: int
    """Steps done; the loader's next step, since steps count from 0."""
    workers: int
    zero_stage: int


def run_folder(settings: TrainSettings, manifest_uri: str, out_uri: str, seed: int) -> str:
    """Folder of a run under `out_uri`, named by its settings, data and seed, so that runs that differ never mix."""
    key = storage.digest(_shaping(settings), str(seed), storage.read_bytes(manifest_uri))
    return storage.join(storage.absolute(out_uri), f"run-{key[:12]}")


def settings_digest(settings: TrainSettings, seed: int) -> str:
    """Hash of what shapes a run besides its data."""
    return storage.digest(_shaping(settings), str(seed))


def _shaping(settings: TrainSettings) -> str:
    shaping = {key: value for key, value in settings.model_dump(mode="json").items() if key not in FREE_TO_CHANGE}
    return json.dumps(shaping, sort_keys=True)


def move(run_uri: str, to_uri: str) -> None:
    """Move a run's folder. Killed at any moment, one of the two is a whole run, and moving again does the rest."""
    if storage.is_local(run_uri):
        storage.remove(to_uri)
        storage.local_path(run_uri).rename(storage.local_path(to_uri))
        return
    # An object store has no rename. Markers go last, so that no checkpoint counts before its files are there.
    for entry in sorted(storage.list_files(run_uri), key=lambda entry: entry.uri.endswith(MARKER)):
        with storage.open_input(entry.uri) as source, storage.atomic_output(to_uri + entry.uri.removeprefix(run_uri)) as target:
            shutil.copyfileobj(source, target)
    storage.remove(run_uri)


def newest(run_uri: str) -> Checkpoint | None:
    """The whole checkpoint with the most steps, or None."""
    found = whole(run_uri)
    return found[-1] if found else None


def whole(run_uri: str) -> list[Checkpoint]:
    """All whole checkpoints of a run, by steps."""
    checkpoints = []
    for entry in storage.list_files(storage.join(run_uri, "checkpoints"), MARKER):
        mark = json.loads(storage.read_bytes(entry.uri))
        checkpoints.append(Checkpoint(entry.uri.rpartition("/")[0], mark["step"], mark["workers"], mark["zero_stage"]))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def save(run_uri: str, step: int, engine: Engine, ema: Ema, settings: TrainSettings) -> Checkpoint:
    """Write a checkpoint after `step` steps and remove the oldest beyond `settings.keep_checkpoints`; all ranks call it."""
    uri = storage.join(run_uri, "checkpoints", f"step-{step:08d}")
    checkpoint = Checkpoint(uri, step, engine.world_size, settings.zero_stage)
    if engine.rank == 0:
        storage.remove(uri)
    engine.barrier()
    with _outgoing(uri) as folder:
        engine.save(folder)
        torch.save(ema.averages, folder / f"ema-rank{engine.rank:05d}.pt")
    engine.barrier()
    if engine.rank == 0:
        storage.write_bytes(storage.join(uri, MARKER), json.dumps(asdict(checkpoint)).encode())
        _prune(run_uri, settings.keep_checkpoints)
    engine.barrier()
    return checkpoint


def _prune(run_uri: str, keep: int) -> None:
    kept = {checkpoint.uri for checkpoint in whole(run_uri)[-keep:]}
    for entry in storage.list_files(storage.join(run_uri, "checkpoints")):
        folder = re.sub(r"(/step-\d+)/.*", r"\1", entry.uri)
        if folder not in kept and storage.exists(folder):
            # The marker goes first: a folder half removed must not pass for a checkpoint.
            storage.remove(storage.join(folder, MARKER))
            storage.remove(folder)


def load(checkpoint: Checkpoint, engine: Engine, ema: Ema, settings: TrainSettings) -> None:
    """Bring a fresh engine and average to where the checkpoint left them; all ranks call it.

    Raises `ValueError` when weights are sharded, now or then, and the workers or the ZeRO stage differ.
    """
    then, now = (checkpoint.workers, checkpoint.zero_stage), (engine.world_size, settings.zero_stage)
    if then != now:
        written, here = (f"{workers} workers with zero_stage {stage}" for workers, stage in (then, now))
        raise ValueError(f"{checkpoint.uri} was written by {written}, and this run has {here}; go on as before, or remove the folder to start over")
    with _incoming(checkpoint.uri) as folder:
        engine.load(folder)
        ema.load(torch.load(folder / f"ema-rank{engine.rank:05d}.pt", map_location=engine.device, weights_only=True))
    engine.barrier()


@contextlib.contextmanager
def _outgoing(uri: str) -> Iterator[Path]:
    """A local folder whose files are under `uri` when the block ends, safely on disk."""
    if not storage.is_local(uri):
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
            for file in _files(Path(name)):
                with file.open("rb") as source, storage.atomic_output(storage.join(uri, str(file.relative_to(name)))) as target:
                    shutil.copyfileobj(source, target)
        return
    folder = storage.local_path(uri)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for file in _files(folder):
        # Another rank may be replacing a file of its own: only what can still be opened is ours to wait for.
        with contextlib.suppress(FileNotFoundError), file.open("rb") as handle:
            os.fsync(handle.fileno())


@contextlib.contextmanager
def _incoming(uri: str) -> Iterator[Path]:
    """A local folder that holds the files under `uri`."""
    if storage.is_local(uri):
        yield storage.local_path(uri)
        return
    with tempfile.TemporaryDirectory() as name:
        for entry in storage.list_files(uri):
            target = Path(name) / entry.uri.removeprefix(uri).strip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with storage.open_input(entry.uri) as source, target.open("wb") as handle:
                shutil.copyfileobj(source, handle)
        yield Path(name)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
