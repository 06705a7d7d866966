"""The folder of a training run, named by the settings, data and seed that determine its result."""

from __future__ import annotations

import json
import shutil

from cluster import storage
from training.checkpoints.checkpoint import MARKER
from training.settings import TrainSettings

CHANGEABLE_ON_RESUME = frozenset(
    (
        "steps",
        "device",
        "workers",
        "min_workers",
        "context_parallel",
        "zero_stage",
        "cpu_offload",
        "communication_bucket",
        "max_failures",
        "checkpoint_every",
        "checkpoint_every_s",
        "keep_checkpoints",
        "validate_every",
        "export",
        "previews",
        "log_every",
        "trackers",
        "peak_tflops",
    )
)
"""Settings that may differ when a run resumes, besides the model's own `changeable_on_resume`; changing any other
starts a new run."""


def run_folder(settings: TrainSettings, manifest_uri: str, out_uri: str, seed: int) -> str:
    """Return the URI of a run's folder under `out_uri`, named by a hash of its settings, data and seed, so that runs
    never mix.
    """
    key = storage.digest(_fixed_settings(settings), str(seed), storage.read_bytes(manifest_uri))
    return storage.join(storage.absolute(out_uri), f"run-{key[:12]}")


def settings_digest(settings: TrainSettings, seed: int) -> str:
    """Return a hash of the settings and seed that determine a run's result, without its data."""
    return storage.digest(_fixed_settings(settings), str(seed))


def _fixed_settings(settings: TrainSettings) -> str:
    """Return as JSON the settings that may not change when a run resumes."""
    fixed = {key: value for key, value in settings.model_dump(mode="json").items() if key not in CHANGEABLE_ON_RESUME}
    changeable = settings.model.changeable_on_resume
    fixed["model"] = {key: value for key, value in fixed["model"].items() if key not in changeable}
    return json.dumps(fixed, sort_keys=True)


def move_run(run_uri: str, to_uri: str) -> None:
    """Move a run's folder. If it is killed midway, one of the two folders is a complete run, and a second call finishes
    the move.
    """
    if storage.is_local(run_uri):
        storage.remove(to_uri)
        storage.local_path(run_uri).rename(storage.local_path(to_uri))
        return
    # Object stores cannot rename. Markers are copied last, so that no checkpoint is complete before its files are
    # there.
    for entry in sorted(storage.list_files(run_uri), key=lambda entry: entry.uri.endswith(MARKER)):
        with (
            storage.open_input(entry.uri) as source,
            storage.atomic_output(to_uri + entry.uri.removeprefix(run_uri)) as target,
        ):
            shutil.copyfileobj(source, target)
    storage.remove(run_uri)
