"""A whole checkpoint: finding it and loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cluster import storage
from training.checkpoints import files
from training.checkpoints.files import Index, Layout, shards_of
from training.ema import Ema
from training.engine import Engine

MARKER = "complete.json"
"""Written last, by rank 0, when every rank's files are in place; a folder without it is no checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and how it was written."""

    uri: str
    step: int
    """Steps done; the loader's next step, since steps count from 0."""
    workers: int
    zero_stage: int


def newest_checkpoint(run_uri: str) -> Checkpoint | None:
    """The whole checkpoint with the most steps, or None."""
    found = whole_checkpoints(run_uri)
    return found[-1] if found else None


def whole_checkpoints(run_uri: str) -> list[Checkpoint]:
    """All whole checkpoints of a run, by steps."""
    checkpoints = []
    for entry in storage.list_files(storage.join(run_uri, "checkpoints"), MARKER):
        mark = json.loads(storage.read_bytes(entry.uri))
        checkpoints.append(Checkpoint(entry.uri.rpartition("/")[0], mark["step"], mark["workers"], mark["zero_stage"]))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def load_checkpoint(checkpoint: Checkpoint, engine: Engine, ema: Ema) -> dict[str, Any]:
    """Bring an engine and an average to where a checkpoint left them, whatever its workers and ZeRO stage were; all ranks call it.

    Returns the state that it was written with. Raises `ValueError` when the checkpoint is of another model or format.
    """
    index = Index.read(checkpoint.uri)
    written, (here,) = sum(layout.elements for layout in index.layouts), engine.sum([Layout.of(engine).elements])
    if written != here:
        raise ValueError(
            f"{checkpoint.uri} is of another model: it holds {written} weights, and this one has {here:.0f}"
        )
    files.load(checkpoint.uri, index, engine.fragments(), shards_of(engine, ema))
    engine.updates = index.updates
    engine.weights_changed()
    engine.barrier()
    return index.state
