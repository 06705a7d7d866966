"""Clips for tests of autoencoder training, and settings under which a tiny network trains on them in a second."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from cluster.arrays import Pixels
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings

SETTINGS = AutoencoderTrainSettings(
    preset="tiny",
    steps=6,
    crops=(CropSettings(size=16, frames=5, batch=4), CropSettings(size=24, frames=1, batch=2, share=0.5)),
    strides=(1, 2),
    warmup_steps=1,
    checkpoint_every=2,
    validate_every=3,
    loaders=2,
)


def sliding_texture(frames: int, height: int, width: int, seed: int) -> Pixels:
    """Return a clip `[T, H, W, 3]` of a coloured texture that moves by 2 pixels per frame."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    texture = cv2.resize(colours, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([texture[:, 2 * k : 2 * k + width] for k in range(frames)])


def write_clips(folder: Path) -> None:
    """Write four training clips and two held-out ones, the first of each split an image."""
    for split, count in (("train", 4), ("val", 2)):
        (folder / split).mkdir()
        for index in range(count):
            pixels = sliding_texture(12 if index else 1, 32, 40, len(split) * 10 + index)
            np.save(folder / split / f"{index}.npy", pixels)


def random_pair(seed: int) -> tuple[Tensor, Tensor]:
    """Return a noisy copy of a random video, and the video, both `[2, 3, 2, 24, 32]` in [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    video = torch.rand((2, 3, 2, 24, 32), generator=rng) * 2 - 1
    return (video + 0.3 * torch.randn(video.shape, generator=rng)).clamp(-1, 1), video
