"""Complete checkpoints of a run and where to find them. This module imports neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from cluster import storage
from cluster.telemetry import log
from training.data.footer import DamagedError

MARKER = "complete.json"
"""File that rank 0 writes last, when the files of all ranks are complete; a folder without it is not a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint and how it was written."""

    uri: str
    step: int
    """Steps taken; also the next step to take, because steps count from 0."""
    workers: int
    zero_stage: int


@dataclass(frozen=True)
class Marker:
    """The content of a checkpoint's marker, with its own digest and that of the index, which has those of the files."""

    checkpoint: Checkpoint
    index_digest: str | None
    """Digest of `index.json`; None in a marker by an earlier version."""

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        one = self.checkpoint
        fields = {"step": one.step, "workers": one.workers, "zero_stage": one.zero_stage, "index": self.index_digest}
        return json.dumps(fields | {"digest": storage.digest(json.dumps(fields))}).encode()

    @classmethod
    def read(cls, folder_uri: str) -> Marker:
        """Return the marker of a checkpoint's folder. Raises `DamagedError` if it was altered."""
        uri = storage.join(folder_uri, MARKER)
        try:
            fields = storage.read_json(uri)
            digest = fields.pop("digest", None)
            marker = cls(Checkpoint(folder_uri, *(fields[key] for key in ("step", "workers", "zero_stage"))), digest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{uri}: is damaged") from error
        if digest is None:
            return marker
        if digest != storage.digest(json.dumps(fields)):
            raise DamagedError(f"{uri}: is damaged")
        return cls(marker.checkpoint, fields["index"])


@cache
def _warn_once(message: str) -> None:
    # Checkpoints are listed several times per run.
    log.warning(message)


def newest_checkpoint(run_uri: str) -> Checkpoint | None:
    """Return the complete checkpoint of a run with the most steps, or None."""
    found = complete_checkpoints(run_uri)
    return found[-1] if found else None


def complete_checkpoints(run_uri: str) -> list[Checkpoint]:
    """Return all complete checkpoints of a run, sorted by step. One whose marker is damaged is left out, with a
    warning.
    """
    checkpoints = []
    for found in find_checkpoints(run_uri):
        if isinstance(found, DamagedError):
            _warn_once(f"{found}, and its checkpoint is not used")
        else:
            checkpoints.append(found)
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def find_checkpoints(run_uri: str) -> Iterator[Checkpoint | DamagedError]:
    """Yield the checkpoints of a run in the order of their folders' names, or the error of a damaged marker."""
    for entry in storage.list_files(storage.join(run_uri, "checkpoints"), MARKER):
        try:
            yield Marker.read(entry.uri.rpartition("/")[0]).checkpoint
        except DamagedError as error:
            yield error
