"""Latent shards that are gone: the clips in them are encoded again, and no others."""

from __future__ import annotations

from collections import defaultdict

import pyarrow.compute as pc

from cluster import storage
from cluster.telemetry import log
from pipelines.curation import Curation
from pipelines.engine import tables
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode

MANIFEST = "/_manifest.parquet"


def discard_rows_of_lost_shards(recipe: Recipe, curation: Curation) -> bool:
    """Return whether a manifest names shards of the recipe's latents that are gone.

    If so, remove such manifests and the tables of `encode` over these latents. Curation then does their rows again, but
    encodes only what no shard holds.
    """
    segment = curation.final.segment
    encode, lineage, tables_uri = segment.steps[-1], segment.lineages[-1], recipe.tables_uri
    if not isinstance(encode, Encode):
        return False
    uris = {entry.uri for entry in storage.list_files(tables_uri, ".parquet")}
    latents = encode.latents_folder(tables_uri, lineage) + "/"
    lost: dict[str, set[str]] = {}
    for manifest in (uri for uri in uris if uri.endswith(MANIFEST)):
        files = pc.unique(storage.read_table(manifest, ["file"])["file"]).to_pylist()
        named = {storage.join(tables_uri, file) for file in files}
        lost[manifest] = {uri for uri in named - uris if uri.startswith(latents)}
    gone = sorted(set[str]().union(*lost.values()))
    if not gone:
        return False
    log.warning(f"{len(gone)} latent shards are gone, {gone[0]} first; their clips are encoded again")
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for uri in sorted(uris):
        parts[uri.rpartition("/")[0]].append(uri)
    folders = [manifest.rpartition("/")[0] for manifest, of_manifest in lost.items() if of_manifest]
    folders += [folder for folder, uris_ in parts.items() if lineage in _lineages(uris_[0])]
    for folder in folders:
        storage.remove(folder)
    return True


def _lineages(part: str) -> list[str]:
    """Return the lineages in the metadata of a part of a table; none for a shard or another file."""
    found = tables.read_metadata(part).get("lineages", [])
    assert isinstance(found, list)
    return found
