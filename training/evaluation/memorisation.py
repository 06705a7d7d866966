"""Memorisation: how near generated clips come to training clips, beside how near clips that were held out come."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from cluster import storage
from cluster.telemetry import log
from training.data.buckets import parse_bucket_name
from training.data.dataset import Dataset
from training.evaluation.charts import cumulative_chart
from training.evaluation.nearest import MIN_TRAINING, Nearest, TrainingClips

HELD_OUT_QUANTILE = 0.05
"""A clip whose ratio is below this quantile of held-out clips' ratios is nearer than such clips are by chance."""
MAX_HELD_OUT = 256
"""Most held-out clips that are compared, the first of the split."""


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
        rows = rows_of(training, bucket)
        if len(rows) < MIN_TRAINING or parse_bucket_name(bucket)[2] == 1:
            continue
        clips = TrainingClips(latents_of(training, rows), ["content"])
        found[0].extend(clips.nearest(latents.items(), "content"))
        held_out_rows = rows_of(held_out, bucket)[:MAX_HELD_OUT]
        found[1].extend(clips.nearest(latents_of(held_out, held_out_rows), "content"))
    if not found[0] or not found[1]:
        log.info(
            f"generated clips are not compared with training clips: no bucket has {MIN_TRAINING} training clips and a "
            "clip of the validation split"
        )
        return None
    return Memorisation(tuple(found[0]), tuple(found[1]))


def rows_of(dataset: Dataset, bucket: str) -> list[int]:
    """Return the rows of a bucket's samples."""
    of_bucket = pc.equal(dataset.table["bucket"], bucket).to_numpy(zero_copy_only=False)
    return np.flatnonzero(of_bucket).tolist()  # type: ignore[no-any-return]


def latents_of(dataset: Dataset, rows: Iterable[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield uid and latents `[C, t, h, w]` of the samples in rows."""
    for row in rows:
        sample = dataset.sample(row)
        yield sample.uid, sample.latent


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
