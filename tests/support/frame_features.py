"""Features of drawn shots at the size of a signature, with known transitions, for tests of shot detection."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import cv2
import numpy as np

from cluster.arrays import BoolArray, Float64Array, Int64Array
from pipelines.video.frame_features import FrameFeatures

HEIGHT, WIDTH = 18, 32


def draw_shot(seed: int, n: int, speed: float = 0.0) -> Float64Array:
    """Draw n frames `[n, 3, 18, 32]` of soft patches in luma, Cb and Cr, with a little noise.

    The patches move right by `speed` elements per frame.
    """
    rng = np.random.default_rng(seed)
    wide = WIDTH + int(abs(speed) * n) + 2
    # Patches of several sizes: with one size, a slow pan would be a mixture of neighbouring patches, like a dissolve.
    image = np.full((3, HEIGHT, wide), 128.0)
    for size, depth in ((8, 55), (4, 40), (2, 25)):
        coarse = rng.uniform(-depth, depth, (3, HEIGHT // size + 1, wide // size + 1))
        image += np.stack([cv2.resize(plane, (wide, HEIGHT), interpolation=cv2.INTER_CUBIC) for plane in coarse])
    image[1:] = 128 + (image[1:] - 128) * 0.4
    x = np.arange(WIDTH) + (abs(speed) * np.arange(n))[:, None]
    low = np.floor(x).astype(int)
    moved = np.stack(
        [image[:, :, low[k]] * (1 - (x[k] - low[k])) + image[:, :, low[k] + 1] * (x[k] - low[k]) for k in range(n)]
    )
    return moved + rng.normal(0, 0.5, moved.shape)


def dissolve(a: Float64Array, b: Float64Array, n: int) -> Float64Array:
    """Return `b` after `a` with n mixed frames, which show both."""
    share = (np.arange(n) + 1)[:, None, None, None] / (n + 1)
    return np.concatenate([a[:-n], a[-n:] * (1 - share) + b[:n] * share, b[n:]])


def fade(a: Float64Array, b: Float64Array, colour: tuple[int, int, int], n: int, hold: int) -> Float64Array:
    """Return `b` after `a` through a plain colour.

    n frames fade out, the last of them plain; `hold` frames are plain; n frames fade in.
    """
    plain = np.broadcast_to(np.array(colour, float)[:, None, None], a.shape[1:])
    down = (np.arange(n) + 1)[:, None, None, None] / n
    up = (np.arange(n) + 1)[:, None, None, None] / (n + 1)
    return np.concatenate(
        [
            a[:-n],
            a[-n:] * (1 - down) + plain * down,
            np.repeat(plain[None], hold, axis=0),
            plain * (1 - up) + b[:n] * up,
            b[n:],
        ]
    )


def features_of(
    frames: Float64Array,
    pts: Int64Array | None = None,
    time_base: Fraction = Fraction(1, 25),
    keep: BoolArray | None = None,
) -> FrameFeatures:
    """Return the features of frames `[N, 3, H, W]` without content scores; where `keep` is false, a frame is skipped.

    Every change is the mean absolute difference of luma.
    """
    kept = np.arange(len(frames)) if keep is None else np.flatnonzero(keep)
    pts = np.arange(len(frames)) if pts is None else pts
    values = np.clip(np.rint(frames[kept]), 0, 255).astype(np.uint8)
    luma = values[:, 0]
    chroma = np.stack(
        [
            [cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for plane in frame[1:]]
            for frame in values
        ]
    )
    change = np.zeros(len(kept), np.float32)
    change[1:] = np.abs(np.diff(luma.astype(np.float32), axis=0)).mean(axis=(1, 2))
    known = {
        "pts_N": pts[kept].astype(np.int64),
        "skipped_N": (np.diff(kept, prepend=-1) - 1).astype(np.int32),
        "luma_NHW": luma,
        "chroma_N2hw": chroma,
        "content_score_N": np.full(len(kept), np.nan, np.float32),
    }
    others = {field.name: change for field in fields(FrameFeatures) if field.name not in {"time_base", *known}}
    return FrameFeatures(time_base, **(others | known))
