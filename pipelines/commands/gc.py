"""`worldloom gc`: remove tables that the recipe in `out/run.yaml` does not reach.

Unreached are the tables of earlier settings and the files of killed writers. Reached are the tables of the recipe's
segments, the latents they name, the embeddings of its text encoder and the manifest of its clips. Training runs,
samples, exports and records are no tables and are never touched.

Removed tables cost work if their settings come back: a later run could have reused their values
(`pipelines.engine.reuse`), and manifests of other recipes that were trained on go too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow.compute as pc
import pyarrow.fs as pafs
import typer
from rich.markup import escape

from cluster import storage
from cluster.config import ConfigError, parse, parse_document
from cluster.leases import EVERYTHING, lease
from pipelines.commands._console import console, print_line, table_of
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.curation import Curation, inspect
from pipelines.dataset.splits import read_splits
from pipelines.engine import tables
from pipelines.engine.exclusions import check_no_unfinished_removal
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode
from training.data.footer import DamagedError
from training.data.manifest import read_manifest
from training.data.shards import clip_uids


@dataclass(frozen=True)
class Folder:
    """An entry of `out/tables`, with its number of files and its size."""

    name: str
    reached_by: str | None
    """The use that the recipe makes of it; None if the recipe does not reach it."""
    files: int
    size_bytes: int


def survey(recipe: Recipe) -> list[Folder]:
    """Return the entries of the tables' folder, and which of them the recipe reaches that was last run there.

    Raises `ConfigError` if no recipe was run there, or if its curation is not complete: it may still reuse values of
    any table.
    """
    check_no_unfinished_removal(recipe.out_uri)
    last = last_run(recipe)
    curation = inspect(last)
    if not curation.complete:
        raise ConfigError(
            f"{last.out_uri}: curation is not complete ({curation.progress}) and may reuse values of any table; "
            "run it to the end first"
        )
    reached = reached_folders(last, curation)
    return [
        Folder(name, reached.get(name), files, size) for name, (files, size) in sorted(_sizes(last.tables_uri).items())
    ]


def collect(recipe: Recipe, folders: list[Folder]) -> None:
    """Remove the folders that nothing reaches. Manifests are removed first: none may exist without its latents."""
    gone = [folder.name for folder in folders if folder.reached_by is None]
    for name in sorted(gone, key=lambda name: (not name.startswith("manifest-"), name)):
        storage.remove(storage.join(recipe.tables_uri, name))


def last_run(recipe: Recipe) -> Recipe:
    """Return the resolved recipe that was last run in this `out`."""
    uri = storage.join(recipe.out_uri, "run.yaml")
    if not storage.exists(uri):
        raise ConfigError(f"{uri}: no such file, so nothing was run in this out and there is nothing to remove")
    last = parse(Recipe, parse_document(storage.read_bytes(uri).decode(), uri))
    # The folder may have been moved since.
    return last.model_copy(update={"out": recipe.out})


def reached_folders(recipe: Recipe, curation: Curation) -> Mapping[str, str]:
    """Return the names of the folders that a complete curation reaches, each with what it is used for."""
    root = recipe.tables_uri + "/"
    reached = {
        state.folder.removeprefix(root): f"segment {' > '.join(state.segment.labels)}" for state in curation.segments
    }
    encode = recipe.curate[-1]
    if isinstance(encode, Encode):
        latents = encode.latents_folder(recipe.tables_uri, curation.final.segment.lineages[-1]).removeprefix(root)
        reached[latents] = "latents"
        for name, text_folder in _manifests(recipe, curation, encode, latents):
            reached[name] = "manifest"
            reached[text_folder] = "text embeddings"
    return reached


def _manifests(recipe: Recipe, curation: Curation, encode: Encode, latents: str) -> list[tuple[str, str]]:
    """Return (folder, folder of text embeddings) of each manifest of exactly the kept clips in their splits."""
    splits = read_splits(recipe.out_uri)
    kept = set(curation.final.rows.live().uids.to_pylist())
    wanted = (
        {}
        if splits is None
        else {
            row["uid"]: row["split"]
            for row in splits.select(["uid", "split"]).to_pylist()
            if row["uid"] in kept and row["split"]
        }
    )
    identity, found = encode.text.identity(), []
    for uri in tables.manifests(recipe.tables_uri):
        try:
            table, info = read_manifest(uri)
        except DamagedError:
            continue
        folders = {file.partition("/")[0] for file in pc.unique(table["file"]).to_pylist()}
        # A clip may have several samples, all in its split.
        clips = clip_uids(table["uid"]).to_pylist()
        same = dict(zip(clips, table["split"].to_pylist(), strict=True)) == wanted
        if same and folders == {latents} and info.text_encoder_identity == identity:
            found.append((uri.split("/")[-2], info.text_folder))
    return found


def _sizes(tables_uri: str) -> dict[str, tuple[int, int]]:
    """Return (files, bytes) of each entry of the tables' folder, unfinished files of killed writers included."""
    filesystem, path = storage.resolve(tables_uri)
    infos: list[Any] = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    sizes: dict[str, tuple[int, int]] = {}
    for info in infos:
        name = info.path[len(path.rstrip("/")) + 1 :].partition("/")[0]
        files, size = sizes.get(name, (0, 0))
        sizes[name] = (files + info.is_file, size + (info.size or 0 if info.is_file else 0))
    return sizes


def print_folders(folders: list[Folder], dry_run: bool) -> None:
    """Print what is kept and what is removed, with sizes."""
    removed = "would be removed" if dry_run else "removed"
    table = table_of("Tables", ("folder", "kept for", "files", "MB"), ("files", "MB"))
    for folder in sorted(folders, key=lambda folder: (folder.reached_by is None, -folder.size_bytes, folder.name)):
        kept_for = folder.reached_by or f"[red]{removed}[/]"
        table.add_row(escape(folder.name), kept_for, str(folder.files), f"{folder.size_bytes / 1e6:,.1f}")
    console.print(table)
    gone = [folder.size_bytes for folder in folders if folder.reached_by is None]
    kept_mb = (sum(folder.size_bytes for folder in folders) - sum(gone)) / 1e6
    print_line(f"{len(gone)} {removed}, {sum(gone) / 1e6:,.1f} MB; {kept_mb:,.1f} MB kept")


def command(
    recipe: RecipeFile,
    set_: Assignments = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove tables that the recipe last run in this folder does not reach. Training runs, samples and exports stay.

    If earlier settings come back, such as thresholds, captions or buckets, their tables are computed again.
    """
    settings = read_recipe(recipe, set_)
    if dry_run:
        folders = survey(settings)
    else:
        # Training, too, must not run meanwhile: it reads manifests and latents.
        with lease(settings.out_uri, EVERYTHING):
            folders = survey(settings)
            collect(settings, folders)
    print_folders(folders, dry_run)
