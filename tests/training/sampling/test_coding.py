"""Frames to latents and back."""

from __future__ import annotations

import numpy as np
import torch

from training.autoencoders.linear import Linear
from training.sampling.coding import decode_video, encode_video, to_pixels


def test_pixels_are_rounded_and_clamped() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert to_pixels(video)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_video_returns_through_its_latents() -> None:
    autoencoder = Linear().open()
    ramp_THWC = np.broadcast_to(np.linspace(20, 220, 48)[None, None, :, None], (5, 32, 48, 3)).astype(np.uint8)
    latent_CTHW = encode_video(autoencoder, ramp_THWC, "cpu")
    assert latent_CTHW.shape == (16, 2, 4, 6)
    assert abs(decode_video(autoencoder, latent_CTHW[None]).astype(int) - ramp_THWC).mean() < 8
