"""Rows with images for tests of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.arrays import Pixels
from pipelines.engine.step import Context, Step, start_fates
from pipelines.engine.worker import guarded
from pipelines.video.still_images import encode_jpeg


def table_of(
    clips: Sequence[Sequence[Pixels | bytes] | None], column: str = "frames", **columns: Sequence[Any]
) -> pa.Table:
    """Return a live row per clip with its images, in `column`. Arrays are compressed to JPEG, bytes are stored
    unchanged."""
    stored = [
        None if clip is None else [item if isinstance(item, bytes) else encode_jpeg(item, 95) for item in clip]
        for clip in clips
    ]
    uids = [f"clip{i}" for i in range(len(clips))]
    return start_fates(pa.table({"uid": uids, column: pa.array(stored, pa.list_(pa.binary())), **columns}))


def run(step: Step, table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows that a step gives for a table of live rows, as a worker runs it."""
    rows: list[dict[str, Any]] = guarded(step.open(Context("", 0)), table, step.writes()).to_pylist()
    return rows


def texture(n: int, step: float, width: int = 320, height: int = 192, seed: int = 0) -> list[Pixels]:
    """Return `n` images `[H, W, 3]` of a smooth texture that moves to the right by `step` pixels per image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [(*rng.uniform(-0.15, 0.15, 2), rng.uniform(0, 6.28), rng.uniform(-10, 10, 3)) for _ in range(8)]
    images = []
    for k in range(n):
        colour = sum(np.sin(fx * (x - k * step) + fy * y + phase)[..., None] * tint for fx, fy, phase, tint in waves)
        images.append(np.clip(110 + np.asarray(colour), 0, 255).astype(np.uint8))
    return images
