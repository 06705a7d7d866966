"""The nearest training clips of a clip, by content and by motion.

Clips are compared as thumbnails of their latents, averaged over space to at most `CELLS` x `CELLS` cells. The distance
is the root mean square difference, between clips of the same shape. In the view `content` each channel is divided by
its standard deviation over training clips. In the view `motion` a thumbnail has the size of the change from frame to
frame, over all channels: what stands still is not in it, and neither is the colour of what moves.

A generated clip that lacks detail is near to everything, so the distance to the nearest training clip is divided by the
mean distance to the `NEIGHBOURS` nearest, as Carlini et al. 2023 ("Extracting Training Data from Diffusion Models")
scale by the distances to neighbours: a copy has a ratio near 0, any other clip one near 1.

Shape suffixes: N clips, D values of a thumbnail, C channels, T H W latent frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from cluster.arrays import Float32Array

View = Literal["content", "motion"]
VIEWS: tuple[View, ...] = ("content", "motion")
CELLS = 8
NEIGHBOURS = 10
MIN_TRAINING = 8
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
class Thumbnails:
    """Thumbnails `[N, D]` of clips of one shape, with their names."""

    names: tuple[str, ...]
    values_ND: Float32Array


def thumbnail(latent_CTHW: Tensor, view: View = "content") -> Float32Array:
    """Return the thumbnail of latents, averaged over space: `[C, T, h, w]`, or `[1, T - 1, h, w]` of motion."""
    values_CTHW = latent_CTHW.float()
    if view == "motion":
        values_CTHW = (values_CTHW[:, 1:] - values_CTHW[:, :-1]).square().mean(dim=0, keepdim=True).sqrt()
    _, frames, height, width = values_CTHW.shape
    return F.adaptive_avg_pool3d(values_CTHW, (frames, min(height, CELLS), min(width, CELLS))).numpy()


class TrainingClips:
    """The training clips of one shape that others are compared with."""

    def __init__(self, clips: Iterable[tuple[str, Tensor]], views: Sequence[View] = VIEWS) -> None:
        """Keep thumbnails of clips, each a uid with its latents `[C, T, H, W]`. There is at least one."""
        thumbnails = [(uid, *(thumbnail(latent, view) for view in views)) for uid, latent in clips]
        uids, *by_view = zip(*thumbnails, strict=True)
        self._stored = {view: _Stored.of(uids, np.stack(one)) for view, one in zip(views, by_view, strict=True)}

    def nearest(self, clips: Iterable[tuple[str, Tensor]], view: View) -> list[Nearest]:
        """Return the nearest of the training clips in a view, for named latents of the same shape."""
        stored = self._stored[view]
        named = [(name, thumbnail(latent, view)) for name, latent in clips]
        if not named:
            return []
        names, values = zip(*named, strict=True)
        return list(nearest(Thumbnails(names, _flat(np.stack(values), stored.scale)), stored.thumbnails))


@dataclass(frozen=True)
class _Stored:
    """The thumbnails of training clips, divided by a scale per channel `[1, C, 1, 1, 1]`."""

    thumbnails: Thumbnails
    scale: Float32Array

    @classmethod
    def of(cls, uids: tuple[str, ...], values_NCTHW: Float32Array) -> _Stored:
        scale = np.maximum(values_NCTHW.std(axis=(0, 2, 3, 4), keepdims=True), 1e-6)
        return cls(Thumbnails(uids, _flat(values_NCTHW, scale)), scale)


def nearest(queries: Thumbnails, stored: Thumbnails) -> Iterator[Nearest]:
    """Yield the nearest of the stored clips for each query, of thumbnails `[N, D]`."""
    squares_N = (stored.values_ND**2).mean(1)
    for name, query_D in zip(queries.names, queries.values_ND, strict=True):
        squared_N = squares_N - 2 * stored.values_ND @ query_D / len(query_D) + (query_D**2).mean()
        order = np.argsort(squared_N)[:NEIGHBOURS]
        distances = np.sqrt(np.maximum(squared_N[order], 0))
        mean = float(distances.mean())
        yield Nearest(name, stored.names[order[0]], float(distances[0]), float(distances[0]) / mean if mean else 0.0)


def _flat(values_NCTHW: Float32Array, scale: Float32Array) -> Float32Array:
    return (values_NCTHW / scale).reshape(len(values_NCTHW), -1).astype(np.float32)
