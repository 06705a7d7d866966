"""The folder of a training run, named by what shapes the run."""

from __future__ import annotations

import json
import shutil

from cluster import storage
from training.checkpoints.checkpoint import MARKER
from training.settings import TrainSettings

FREE_TO_CHANGE = frozenset(
    (
        "steps",
        "workers",
        "min_workers",
        "context_parallel",
        "zero_stage",
        "cpu_offload",
        "communication_bucket",
        "max_failures",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "previews",
        "log_every",
        "trackers",
        "peak_tflops",
    )
)
"""Settings that may differ when a run goes on, as may a model's `free_to_change`; a change of any other starts a run of its own."""


def run_folder(settings: TrainSettings, manifest_uri: str, out_uri: str, seed: int) -> str:
    """Folder of a run under `out_uri`, named by its settings, data and seed, so that runs that differ never mix."""
    key = storage.digest(_shaping(settings), str(seed), storage.read_bytes(manifest_uri))
    return storage.join(storage.absolute(out_uri), f"run-{key[:12]}")


def settings_digest(settings: TrainSettings, seed: int) -> str:
    """Hash of what shapes a run besides its data."""
    return storage.digest(_shaping(settings), str(seed))


def _shaping(settings: TrainSettings) -> str:
    shaping = {key: value for key, value in settings.model_dump(mode="json").items() if key not in FREE_TO_CHANGE}
    shaping["model"] = {
        key: value for key, value in shaping["model"].items() if key not in settings.model.free_to_change
    }
    return json.dumps(shaping, sort_keys=True)


def move_run(run_uri: str, to_uri: str) -> None:
    """Move a run's folder. Killed at any moment, one of the two is a whole run, and moving again does the rest."""
    if storage.is_local(run_uri):
        storage.remove(to_uri)
        storage.local_path(run_uri).rename(storage.local_path(to_uri))
        return
    # An object store has no rename. Markers go last, so that no checkpoint counts before its files are there.
    for entry in sorted(storage.list_files(run_uri), key=lambda entry: entry.uri.endswith(MARKER)):
        with (
            storage.open_input(entry.uri) as source,
            storage.atomic_output(to_uri + entry.uri.removeprefix(run_uri)) as target,
        ):
            shutil.copyfileobj(source, target)
    storage.remove(run_uri)
