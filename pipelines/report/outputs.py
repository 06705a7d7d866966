"""Outputs of a run that the page shows beside the tables: the manifest, the splits and generated samples."""

from __future__ import annotations

from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from pipelines.dataset.splits import splits_uri
from pipelines.engine import tables
from pipelines.recipe import Recipe
from training.data.footer import DamagedError
from training.data.manifest import DatasetInfo, read_manifest
from training.data.shards import clip_uid, clip_uids
from training.sampling.provenance import read_provenance

MAX_SAMPLES = 24


def find_manifest(recipe: Recipe, kept_uids: pa.Array) -> tuple[pa.Table, DatasetInfo] | None:
    """Return the manifest of exactly these clips, or None if there is none, as before encoding."""
    wanted = kept_uids.sort()
    for uri in tables.manifests(recipe.tables_uri):
        try:
            table, info = read_manifest(uri)
        except DamagedError:  # `worldloom verify` reports it; for the page it does not exist
            continue
        # A clip has one or more samples.
        if pc.unique(clip_uids(table["uid"])).sort().equals(wanted):
            return table, info
    return None


def read_split_names(recipe: Recipe, manifest: pa.Table | None) -> dict[str, str]:
    """Return the split of each uid from `splits.parquet`, or else from the manifest; empty if neither exists."""
    uri = splits_uri(recipe.out_uri)
    table = storage.read_table(uri, ["uid", "split"]) if storage.exists(uri) else manifest
    if table is None:
        return {}
    splits = zip(table["uid"].to_pylist(), table["split"].to_pylist(), strict=True)
    return {clip_uid(uid): split for uid, split in splits if split}


def find_samples(recipe: Recipe) -> list[dict[str, str]]:
    """Return the generated videos and images as links relative to the page, with the prompts in their records."""
    folder = storage.join(recipe.out_uri, "samples")
    uris = [entry.uri for entry in storage.list_files(folder)]
    found = []
    for uri in [uri for uri in uris if uri.endswith((".mp4", ".png"))][:MAX_SAMPLES]:
        prompt = str((read_provenance(uri) or {}).get("prompt", ""))
        name = uri.removeprefix(folder).strip("/")
        kind = "video" if name.endswith(".mp4") else "image"
        found.append({"file": f"samples/{quote(name)}", "kind": kind, "prompt": prompt})
    return found
