"""Training runs on the data set before a removal, and resuming one of them on the remaining data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cluster import storage
from cluster.telemetry import log
from pipelines.engine import exclusions, tables
from pipelines.engine.exclusions import RemovalRecord, TrainingRun
from pipelines.recipe import Recipe
from training.checkpoints.checkpoint import MARKER, newest_checkpoint
from training.checkpoints.run_folder import move_run, run_folder, settings_digest


def prior_runs(
    recipe: Recipe, affected_manifests: Iterable[str], dataset: str, earlier: Sequence[RemovalRecord]
) -> tuple[TrainingRun, ...]:
    """Return the training runs in `out` that a removal's record lists.

    `affected_manifests` are the manifests with rows to be removed, `dataset` the `Recipe.dataset_digest` before the
    removal and `earlier` the records of earlier removals.
    """
    affected, runs = set(affected_manifests), set[TrainingRun]()
    if recipe.train is not None:
        settings = settings_digest(recipe.train, recipe.seed)
        for manifest in tables.manifests(recipe.tables_uri):
            folder = run_folder(recipe.train, manifest, recipe.out_uri, recipe.seed)
            if newest_checkpoint(folder) is not None:
                runs.add(TrainingRun(folder.rpartition("/")[2], settings, manifest in affected))
    # A run that no training has resumed since an earlier removal still has its old name.
    runs |= {
        run
        for record in earlier
        if record.dataset_after == dataset
        for run in record.runs
        if storage.exists(storage.join(recipe.out_uri, run.folder))
    }
    return tuple(sorted(runs, key=lambda run: (run.folder, run.settings_digest, run.trained_on_it)))


def adopt_run(recipe: Recipe, dataset: str, run_uri: str) -> None:
    """Move a run from before a removal to `run_uri`, so that training resumes from its last checkpoint.

    `dataset` is the `Recipe.dataset_digest` of the data set to train on. Does nothing if `run_uri` has a checkpoint, or
    if anything but removals has changed the data set since.
    """
    if recipe.train is None or newest_checkpoint(run_uri) is not None:
        return
    settings = settings_digest(recipe.train, recipe.seed)
    for record in reversed(exclusions.read_records(recipe.out_uri)):
        folders = [storage.join(recipe.out_uri, run.folder) for run in record.runs if run.settings_digest == settings]
        candidates = [
            (_written_at(checkpoint.uri), folder, checkpoint)
            for folder in folders
            if folder != run_uri and (checkpoint := newest_checkpoint(folder))
        ]
        if not candidates:
            continue
        if record.dataset_after != dataset:
            log.info("training does not resume from before a removal: steps, splits or sources have changed as well")
            return
        # `out` may also have runs on data sets of other curation settings; the last one trained is the current one.
        _, folder, checkpoint = max(candidates, key=lambda item: item[:2])
        move_run(folder, run_uri)
        log.info(
            f"training resumes from step {checkpoint.step} without what was forgotten; its weights were trained on it"
        )
        if recipe.train.steps <= checkpoint.step:
            log.warning(
                f"that run is finished at step {checkpoint.step}: raise train.steps to train on, "
                f"or remove {run_uri} to start over without it"
            )
        return


def _written_at(checkpoint_uri: str) -> int:
    return max(int(entry.version) for entry in storage.list_files(checkpoint_uri, MARKER))
