"""The data set that a recipe trains on, and how training finds it without curation: `out/dataset.json`."""

from __future__ import annotations

import heapq
import json
from dataclasses import asdict, dataclass

import pyarrow.compute as pc

from cluster import storage
from cluster.config import ConfigError
from pipelines.curation import Curation
from pipelines.recipe import Recipe, with_absolute_paths
from training.data.manifest import read_manifest

FILE = "dataset.json"
MAX_STYLE_CAPTIONS = 512
"""Captions that show the style of a data set: enough that some resemble a prompt, and read in a moment."""


@dataclass(frozen=True)
class CurrentDataset:
    """The manifest to train on, and the digests of the settings and files that it was built from."""

    manifest_uri: str
    settings: str = ""
    """Digest of the recipe's sections `sources`, `curate` and `splits`; empty for a manifest that the recipe names."""
    content: str = ""
    """`Recipe.dataset_digest` of the recipe and the source files; empty likewise."""


def write(recipe: Recipe, curation: Curation, manifest_uri: str) -> None:
    """Write `out/dataset.json` for the manifest that a complete curation built."""
    content = recipe.dataset_digest(curation.sources["uid"].to_pylist())
    relative = manifest_uri.removeprefix(recipe.out_uri + "/")
    data = asdict(CurrentDataset(relative, _settings_digest(recipe), content))
    storage.write_bytes(storage.join(recipe.out_uri, FILE), (json.dumps(data, indent=1) + "\n").encode())


def read(recipe: Recipe) -> CurrentDataset:
    """Return the data set that a recipe trains on: its `manifest`, or else the one that curation built last.

    Raises `ConfigError` if there is none, or it was built by other settings than the recipe has now.
    """
    if recipe.manifest is not None:
        if not storage.exists(recipe.manifest):
            raise ConfigError(f"manifest: {storage.absolute(recipe.manifest)}: no such file")
        return CurrentDataset(storage.absolute(recipe.manifest))
    uri = storage.join(recipe.out_uri, FILE)
    if not storage.exists(uri):
        raise ConfigError(f"{recipe.name}: {recipe.out_uri} has no data set yet; run `worldloom curate` first")
    try:
        found = CurrentDataset(**storage.read_json(uri))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{uri}: cannot be read ({error}); run `worldloom curate`, which writes it again") from error
    if found.settings != _settings_digest(recipe):
        raise ConfigError(
            f"{recipe.name}: the data set in {recipe.out_uri} was built by other sources, curate or splits than the "
            "recipe has now; run `worldloom curate` first"
        )
    manifest_uri = storage.join(recipe.out_uri, found.manifest_uri)
    if not storage.exists(manifest_uri):
        raise ConfigError(f"{manifest_uri}: is gone; run `worldloom curate`, which writes it again")
    return CurrentDataset(manifest_uri, found.settings, found.content)


def remove(out_uri: str) -> None:
    """Remove `out/dataset.json`, so that training waits until curation has built the data set anew."""
    storage.remove(storage.join(out_uri, FILE))


def training_captions(recipe: Recipe) -> list[str]:
    """Return up to `MAX_STYLE_CAPTIONS` main captions of the training split, the same ones each time."""
    table, _ = read_manifest(read(recipe).manifest_uri)
    train = table.filter(pc.equal(table["split"], "train"))
    digests = [storage.digest(uid) for uid in train["uid"].to_pylist()]
    rows = heapq.nsmallest(MAX_STYLE_CAPTIONS, range(len(digests)), key=digests.__getitem__)
    return [train["caption"][row].as_py() for row in rows]


def _settings_digest(recipe: Recipe) -> str:
    # The same files are named by relative paths in a recipe and by absolute ones in run.yaml.
    recipe = with_absolute_paths(recipe)
    sections = recipe.model_dump(mode="json", include={"sources", "curate", "splits"}, by_alias=True)
    return storage.digest(json.dumps(sections, sort_keys=True))
