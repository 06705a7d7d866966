"""The export of a recipe, as the command line asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

import pyarrow as pa

from cluster import plugins, storage
from cluster.config import ConfigError, from_options
from cluster.telemetry import console
from pipelines import inline
from pipelines.curation import inspect
from pipelines.engine.worker import Job
from pipelines.export.clip_files import CutSettings
from pipelines.export.exporter import Split, Summary, Target, export
from pipelines.export.format import FOLDER, Format, Sharded, find
from pipelines.export.index import FILE
from pipelines.export.steps import RunTasks
from pipelines.export.wanted import wanted_clips
from pipelines.recipe import Recipe


def formats() -> list[str]:
    """Names of the layouts, as the command line writes them."""
    return [name.replace("_", "-") for name in plugins.names(FOLDER)]


def run_export(
    recipe: Recipe, to: str, out: str | None, split: str, cut: Mapping[str, Any], shard_mb: int, in_process: bool
) -> Summary:
    """Export the kept clips of a recipe's complete curation; `cut` has the settings of `CutSettings`.

    Raises `ConfigError` where curation is not complete, and for settings nobody knows.
    """
    if split not in get_args(Split):
        raise ConfigError(f"--split {split}: write {', '.join(get_args(Split))}")
    if to not in formats():
        raise ConfigError(f"--to {to}: write {', '.join(formats())}")
    settings, layout = from_options(CutSettings, cut), find(to, {"shard_mb": shard_mb})
    curation = inspect(recipe)
    if not curation.complete:
        waiting = curation.segments[-1]
        state = f"{waiting.segment.label} has {waiting.n_done} of {waiting.n_inputs} rows"
        raise ConfigError(f"curation is not complete: {state}; run `worldloom run --only curate` first")
    clips = wanted_clips(curation.final, storage.join(recipe.out_uri, "splits.parquet"), split)
    folder = storage.absolute(out) if out else storage.join(recipe.out_uri, "export", layout.name.replace("_", "-"))
    _check_outside_sources(recipe, folder, layout)
    with contextlib.ExitStack() as stack:
        return export(
            clips,
            Target(folder, layout, settings, cast(Split, split)),
            inline.run_tasks if in_process else _on_ray(recipe, stack),
        )


def _check_outside_sources(recipe: Recipe, folder: str, layout: Format) -> None:
    """Raises `ConfigError` where the next run would take exported clips for footage."""
    if isinstance(layout, Sharded):
        return
    for kind, source in (("video", "clip.mp4"), ("image", "picture.png"), ("image", "picture.jpg")):
        file = storage.join(folder, layout.clip_file({"uid": "uid", "kind": kind, "split": "train", "source": source}))
        for pattern in (entry.videos or entry.images or "" for entry in recipe.sources):
            if storage.matches(pattern, file):
                raise ConfigError(
                    f"--out {folder}: the recipe's source {pattern} matches files there, so the next run would take exported clips for footage; "
                    "choose a folder that no source matches"
                )


def _on_ray(recipe: Recipe, stack: contextlib.ExitStack) -> RunTasks:
    """Runs orders on Ray, which is connected when the first ones come."""

    def tasks(job: Job, wanted: list[pa.Table]) -> Iterator[pa.Table]:
        # Ray takes a second to import, which an export with nothing to do, and every other command, need not wait for.
        from cluster.session import connected
        from pipelines import run

        stack.enter_context(connected(recipe.ray))
        return run.run_tasks(job, wanted)

    return tasks


def show(summary: Summary, failures: int = 12) -> None:
    """Say what an export came to, and what failed."""
    left_out = f", {summary.n_left_out} left out" if summary.n_left_out else ""
    console.print(
        f"{summary.folder}: {summary.n_clips} clips ({summary.n_copied} copied, {summary.n_encoded} encoded; {summary.n_new} cut in this run), "
        f"{summary.size_bytes / 1e6:.1f} MB{left_out}, {len(summary.failures)} failed",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    for uid, error in summary.failures[:failures]:
        console.print(f"  {uid}: {error}", highlight=False, soft_wrap=True, markup=False)
    if len(summary.failures) > failures:
        console.print(
            f"  and {len(summary.failures) - failures} more, in {summary.folder}/{FILE}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
