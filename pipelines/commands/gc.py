"""Remove tables that the recipe in `out/run.yaml` does not reach: those of earlier settings, and what killed writers left.

Reached are the tables of its segments, the latents they name, the embeddings of its text encoder and the manifest of its clips.
Training runs, samples, exports and records are no tables and are never touched.

What goes was not garbage to a later run: with the old tables go the values that another recipe, or a threshold put back, would have
found there (`pipelines.engine.reuse`), and the manifests of other recipes that were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.fs as pafs

from cluster import storage
from cluster.config import ConfigError, parse, parse_document
from pipelines.curation import Curation, inspect
from pipelines.dataset.splits import read_splits
from pipelines.forgetting.request import check_finished
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode
from training.data import shards
from training.data.footer import DamagedError


@dataclass(frozen=True)
class Folder:
    """One folder or file in `out/tables`: why it is kept, or None, with its size."""

    name: str
    reached_by: str | None
    files: int
    size_bytes: int


def survey(recipe: Recipe) -> list[Folder]:
    """What is in `recipe.out`'s tables, and what of it the recipe reaches that was last run there.

    Raises `ConfigError` where there is none, or its curation is not complete: what it reaches is not known then, and the tables it
    would reuse values from would go.
    """
    check_finished(recipe.out_uri)
    last = last_run(recipe)
    curation = inspect(last)
    if not curation.complete:
        waiting = curation.segments[-1]
        raise ConfigError(
            f"{last.out_uri}: curation is not complete ({waiting.segment.label} has {waiting.n_done} of {waiting.n_inputs} rows), and it may reuse "
            "values of any table; run it to the end first"
        )
    reached = reached_folders(last, curation)
    return [
        Folder(name, reached.get(name), files, size) for name, (files, size) in sorted(_sizes(last.tables_uri).items())
    ]


def collect(recipe: Recipe, folders: list[Folder]) -> None:
    """Remove the folders of a survey that nothing reaches. Manifests go first: one must not be there without its latents."""
    gone = [folder.name for folder in folders if folder.reached_by is None]
    for name in sorted(gone, key=lambda name: (not name.startswith("manifest-"), name)):
        storage.remove(storage.join(recipe.tables_uri, name))


def last_run(recipe: Recipe) -> Recipe:
    """The recipe that was last run in this `out`, as it was resolved then."""
    uri = storage.join(recipe.out_uri, "run.yaml")
    if not storage.exists(uri):
        raise ConfigError(f"{uri}: no such file, so nothing was run in this out; there is nothing to collect")
    last = parse(Recipe, parse_document(storage.read_bytes(uri).decode(), uri))
    if last.out_uri != recipe.out_uri:
        raise ConfigError(
            f"{uri}: is of a run in {last.out_uri}; relative paths in a recipe start in the folder the command is given in: go there"
        )
    return last


def reached_folders(recipe: Recipe, curation: Curation) -> Mapping[str, str]:
    """Names of folders in the tables that a complete curation reaches, each with what it is."""
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
    """(folder, folder of its texts) of the manifests of exactly the kept clips, each in its split."""
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
    for entry in storage.list_files(recipe.tables_uri, "_manifest.parquet"):
        try:
            table, info = shards.read_manifest(entry.uri)
        except DamagedError:
            continue
        folders = {file.partition("/")[0] for file in pc.unique(table["file"]).to_pylist()}
        same = dict(zip(table["uid"].to_pylist(), table["split"].to_pylist(), strict=True)) == wanted
        if same and folders == {latents} and info.text_encoder_identity == identity:
            found.append((entry.uri.split("/")[-2], info.text_folder))
    return found


def _sizes(tables_uri: str) -> dict[str, tuple[int, int]]:
    """(files, bytes) of each entry of the tables' folder, with files that were being written when their writer was killed."""
    filesystem, path = storage.resolve(tables_uri)
    infos: list[Any] = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    sizes: dict[str, tuple[int, int]] = {}
    for info in infos:
        name = info.path[len(path.rstrip("/")) + 1 :].partition("/")[0]
        files, size = sizes.get(name, (0, 0))
        sizes[name] = (files + info.is_file, size + (info.size or 0 if info.is_file else 0))
    return sizes
