"""`worldloom export`: the kept clips as files that other tools read."""

from __future__ import annotations

from typing import Annotated, Any, cast, get_args

import typer

from cluster import listing, plugins, storage
from cluster.config import ConfigError, parse_options
from pipelines.commands._console import print_line
from pipelines.commands._options import Assignments, InProcess, RecipeFile, read_recipe, with_options
from pipelines.commands._session import Session
from pipelines.curation import inspect
from pipelines.dataset.splits import splits_uri
from pipelines.export.clip_files import CutSettings
from pipelines.export.exporter import Split, Summary, Target, export
from pipelines.export.format import FOLDER, Format, ShardedFormat, find_format
from pipelines.export.index import FILE
from pipelines.export.selection import select_clips
from pipelines.recipe import Recipe

MAX_LISTED_FAILURES = 12


def formats() -> list[str]:
    """Return the names of the export formats as the command line writes them."""
    return [name.replace("_", "-") for name in plugins.names(FOLDER)]


def target_of(recipe: Recipe, to: str, out: str | None, split: str, options: dict[str, Any]) -> Target:
    """Return where and how a recipe's clips are exported. Raises `ConfigError` for an option that cannot be meant."""
    if split not in get_args(Split):
        raise ConfigError(f"--split {split}: write {', '.join(get_args(Split))}")
    if to not in formats():
        raise ConfigError(f"--to {to}: write {', '.join(formats())}")
    shard_mb = options.pop("shard_mb")
    settings, layout = parse_options(CutSettings, options), find_format(to, {"shard_mb": shard_mb})
    folder = storage.absolute(out) if out else storage.join(recipe.out_uri, "export", to)
    _check_outside_sources(recipe, folder, layout)
    return Target(folder, layout, settings, cast(Split, split))


def export_clips(recipe: Recipe, target: Target, in_process: bool = False) -> Summary:
    """Export the kept clips of a complete curation. Raises `ConfigError` if curation is not complete."""
    curation = inspect(recipe)
    curation.check_complete()
    clips = select_clips(curation.final, splits_uri(recipe.out_uri), target.split)
    with Session(recipe.ray, in_process) as session:
        return export(clips, target, session.run_tasks)


def _check_outside_sources(recipe: Recipe, folder: str, layout: Format) -> None:
    """Raise `ConfigError` if the next run would take exported clips for footage."""
    if isinstance(layout, ShardedFormat):
        return
    for kind, source in (("video", "clip.mp4"), ("image", "image.png"), ("image", "image.jpg")):
        file = storage.join(folder, layout.clip_file({"uid": "uid", "kind": kind, "split": "train", "source": source}))
        for pattern in (entry.pattern for entry in recipe.sources):
            if listing.matches(pattern, file):
                raise ConfigError(
                    f"--out {folder}: the recipe's source {pattern} matches files there, so the next run would take "
                    "exported clips for footage; choose a folder that no source matches"
                )


def print_summary(summary: Summary) -> None:
    """Print counts, size and the first failures of an export."""
    left_out = f", {summary.n_left_out} left out" if summary.n_left_out else ""
    print_line(
        f"{summary.folder}: {summary.n_clips} clips ({summary.n_copied} copied, {summary.n_encoded} encoded; "
        f"{summary.n_new} cut in this run), {summary.size_bytes / 1e6:.1f} MB{left_out}, "
        f"{len(summary.failures)} failed"
    )
    for uid, error in summary.failures[:MAX_LISTED_FAILURES]:
        print_line(f"  {uid}: {error}")
    if len(summary.failures) > MAX_LISTED_FAILURES:
        print_line(f"  and {len(summary.failures) - MAX_LISTED_FAILURES} more, in {summary.folder}/{FILE}")


@with_options(CutSettings, ("stream_copy", "crf", "preset", "verify"))
def command(
    recipe: RecipeFile,
    options: dict[str, Any],
    to: Annotated[str, typer.Option(help="mp4, webdataset, hf-parquet or fastvideo.")],
    set_: Assignments = None,
    out: Annotated[str | None, typer.Option(help="Folder to write to; out/export/FORMAT by default.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "all",
    shard_mb: Annotated[int, typer.Option(min=1, help="Largest shard of webdataset and hf-parquet, in MB.")] = 512,
    inline: InProcess = False,
) -> None:
    """Export the kept clips as files that other tools read; an export that was stopped resumes.

    Exits 1 if a clip failed.
    """
    settings = read_recipe(recipe, set_)
    target = target_of(settings, to, out, split, {**options, "shard_mb": shard_mb})
    summary = export_clips(settings, target, inline)
    print_summary(summary)
    if summary.failures:
        raise typer.Exit(1)
