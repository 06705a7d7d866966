"""Memorisation: how near generated clips come to training clips, beside how near clips that were held out come.

Clips are compared as thumbnails of their latents: averaged over space to at most `CELLS` x `CELLS` cells, each channel
divided by its standard deviation over training clips. The distance is the root mean square difference, between clips of
the same shape. A generated clip that lacks detail is near to everything, so the distance to the nearest training clip
is divided by the mean distance to the `NEIGHBOURS` nearest, as Carlini et al. 2023 ("Extracting Training Data from
Diffusion Models") scale by the distances to neighbours: a copy has a ratio near 0, any other clip one near 1.

Shape suffixes: N clips, D values of a thumbnail.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from cluster import storage
from cluster.arrays import Float32Array
from cluster.telemetry import log
from training.data.buckets import parse_bucket_name
from training.data.dataset import Dataset
from training.evaluation.charts import cumulative_chart

CELLS = 8
NEIGHBOURS = 10
HELD_OUT_QUANTILE = 0.05
"""A clip whose ratio is below this quantile of held-out clips' ratios is nearer than such clips are by chance."""
MAX_HELD_OUT = 256
"""Most held-out clips that are compared, the first of the split."""
MIN_TRAINING = 2 * NEIGHBOURS
"""Training clips of a shape below which clips of that shape are not compared."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training clip of a clip."""

    name: str
    training_uid: str
    distance: float
    ratio: float
    """The distance over the mean of those to the nearest training clips."""


@dataclass(frozen=True)
class Memorisation:
    """The nearest training clips of generated and of held-out clips."""

    generated: tuple[Nearest, ...]
    held_out: tuple[Nearest, ...]

    @property
    def threshold(self) -> float:
        """The ratio below which `HELD_OUT_QUANTILE` of held-out clips are."""
        return float(np.quantile([one.ratio for one in self.held_out], HELD_OUT_QUANTILE))

    @property
    def share_nearer(self) -> float:
        """Share of generated clips below the threshold; `HELD_OUT_QUANTILE` if nothing is learnt by heart."""
        return float(np.mean([one.ratio < self.threshold for one in self.generated]))


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails `[N, D]` of clips of one shape, with their names."""

    names: tuple[str, ...]
    values_ND: Float32Array


def thumbnail(latent_CTHW: Tensor) -> Float32Array:
    """Return the thumbnail `[C, t, h, w]` of latents, averaged over space."""
    _, _, height, width = latent_CTHW.shape
    pooled = F.adaptive_avg_pool3d(latent_CTHW.float(), (latent_CTHW.shape[1], min(height, CELLS), min(width, CELLS)))
    return pooled.numpy()


def read_latent(uri: str) -> Tensor:
    """Read latents `[C, t, h, w]` from an `.npy` file."""
    return torch.from_numpy(np.load(io.BytesIO(storage.read_bytes(uri))).astype(np.float32))


def compare(generated: Mapping[str, Mapping[str, Tensor]], manifest_uri: str) -> Memorisation | None:
    """Return the nearest training clips of generated clips, by bucket and name, and of the validation split's.

    None, with the reason in the log, if no bucket has enough training clips, or there are no held-out clips of them.
    """
    training, held_out = Dataset.open(manifest_uri, "train"), Dataset.open(manifest_uri, "val")
    found: tuple[list[Nearest], list[Nearest]] = ([], [])
    for bucket, latents in generated.items():
        stored = _thumbnails(training, bucket)
        if len(stored.names) < MIN_TRAINING or parse_bucket_name(bucket)[2] == 1:
            continue
        scale = np.maximum(stored.values_ND.std(axis=(0, *range(2, stored.values_ND.ndim)), keepdims=True), 1e-6)
        made = Thumbnails(tuple(latents), np.stack([thumbnail(latent) for latent in latents.values()]))
        for queries, results in ((made, found[0]), (_thumbnails(held_out, bucket, MAX_HELD_OUT), found[1])):
            if queries.names:
                results += nearest(_scaled(queries, scale), _scaled(stored, scale))
    if not found[0] or not found[1]:
        log.info(
            f"generated clips are not compared with training clips: no bucket has {MIN_TRAINING} training clips and a "
            "clip of the validation split"
        )
        return None
    return Memorisation(tuple(found[0]), tuple(found[1]))


def nearest(queries: Thumbnails, stored: Thumbnails) -> Iterator[Nearest]:
    """Yield the nearest of the stored clips for each query, of thumbnails `[N, D]`."""
    squares_N = (stored.values_ND**2).mean(1)
    for name, query_D in zip(queries.names, queries.values_ND, strict=True):
        squared_N = squares_N - 2 * stored.values_ND @ query_D / len(query_D) + (query_D**2).mean()
        order = np.argsort(squared_N)[:NEIGHBOURS]
        distances = np.sqrt(np.maximum(squared_N[order], 0))
        mean = float(distances.mean())
        yield Nearest(name, stored.names[order[0]], float(distances[0]), float(distances[0]) / mean if mean else 0.0)


def _scaled(thumbnails: Thumbnails, scale: Float32Array) -> Thumbnails:
    values = thumbnails.values_ND / scale
    return Thumbnails(thumbnails.names, values.reshape(len(values), -1).astype(np.float32))


def _thumbnails(dataset: Dataset, bucket: str, max_clips: int | None = None) -> Thumbnails:
    """Return the thumbnails of a bucket's clips, at most `max_clips` of them."""
    rows = np.flatnonzero(pc.equal(dataset.table["bucket"], bucket).to_numpy(zero_copy_only=False))[:max_clips]
    samples = [dataset.sample(int(row)) for row in rows]
    if not samples:
        return Thumbnails((), np.zeros((0, 1), np.float32))
    return Thumbnails(tuple(sample.uid for sample in samples), np.stack([thumbnail(one.latent) for one in samples]))


def chart(found: Memorisation) -> str:
    """Return an SVG chart of the cumulative shares of ratios, of generated and of held-out clips."""
    series = {
        "held-out clips": [one.ratio for one in found.held_out],
        "generated clips": [one.ratio for one in found.generated],
    }
    return cumulative_chart(series, "distance to the nearest training clip / mean of the 10 nearest")


def by_bucket(clips: Iterable[tuple[str, str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return latents by bucket and name, from (bucket, name, latent)."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for bucket, name, latent in clips:
        grouped.setdefault(bucket, {})[name] = latent
    return grouped


def nearest_data(found: Sequence[Nearest]) -> list[dict[str, str | float]]:
    """Return nearest clips as JSON data."""
    return [
        {
            "clip": one.name,
            "training": one.training_uid,
            "distance": round(one.distance, 5),
            "ratio": round(one.ratio, 5),
        }
        for one in found
    ]
