"""Kinds of captions that a recipe trains with, checked against those that its sources and its data set have."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captioning.prompt import SOURCE_KIND
from cluster import storage
from cluster.config import ConfigError
from cluster.telemetry import log
from training.settings import TrainSettings

COLUMNS = ["split", "caption_kind", "other_captions"]


def check_sources(train: TrainSettings | None, sources: pa.Table) -> None:
    """Raise `ConfigError` if training takes source captions only and no source has one."""
    if train is None or set(train.captions) != {SOURCE_KIND}:
        return
    if sources["sidecar"].null_count + sources["listed_caption"].null_count == 2 * len(sources):
        raise ConfigError(
            f"train.captions names kind {SOURCE_KIND} alone, and none of {len(sources):,} sources has a caption: "
            "put clip.txt beside clip.mp4 and write captions: sidecar, or train with the captions of step caption"
        )


def check_manifest(train: TrainSettings, manifest_uri: str) -> None:
    """Raise `ConfigError` if no training sample has a caption of a kind in `train.captions`; warn if only some have.

    A sample without such a caption is trained with its main caption.
    """
    if not train.captions:
        return
    n_samples = n_with = 0
    with storage.open_input(manifest_uri) as handle:
        for batch in pq.ParquetFile(handle).iter_batches(columns=COLUMNS):
            samples = pa.Table.from_batches([batch]).filter(pc.equal(batch["split"], "train"))
            n_samples += len(samples)
            n_with += _count_with(samples, train.captions)
    kinds = " or ".join(train.captions)
    if n_samples and not n_with:
        raise ConfigError(f"train.captions: none of {n_samples:,} training samples has a caption of kind {kinds}")
    if n_with < n_samples:
        log.warning(
            f"train.captions: {n_samples - n_with:,} of {n_samples:,} training samples have no caption of kind "
            f"{kinds}; they are trained with their main caption"
        )


def _count_with(samples: pa.Table, kinds: Collection[str]) -> int:
    """Count the samples that have a caption of one of these kinds."""
    wanted = pa.array(kinds, pa.string())
    others = samples["other_captions"].combine_chunks()
    parents = pc.list_parent_indices(others)
    matching = pc.is_in(pc.struct_field(pc.list_flatten(others), "kind"), wanted)
    with_other = pc.is_in(pa.array(range(len(samples)), parents.type), pc.filter(parents, matching))
    return int(pc.sum(pc.or_(pc.is_in(samples["caption_kind"].combine_chunks(), wanted), with_other)).as_py() or 0)
