"""Frames to latents and back, for one video."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cluster.arrays import Pixels, UInt8Array
from training.autoencoder import Autoencoder
from training.pixels import from_uint8, to_uint8

# Shape suffixes: B videos, C latent channels or colours, T H W frames, rows and columns.


@torch.no_grad()
def encode_video(autoencoder: Autoencoder, video_THWC: Pixels, device: torch.device | str) -> Tensor:
    """Return the latents `[C, t, h, w]` of RGB frames `[T, H, W, 3]`."""
    video_BCTHW = from_uint8(torch.from_numpy(video_THWC.copy())).permute(3, 0, 1, 2)[None]
    return autoencoder.encode(video_BCTHW.to(device))[0]


@torch.no_grad()
def decode_video(autoencoder: Autoencoder, latent_BCTHW: Tensor) -> UInt8Array:
    """Return the video `[T, H, W, 3]` of the latents of one sample."""
    video_THWC: UInt8Array = to_pixels(autoencoder.decode(latent_BCTHW))[0].numpy()
    return video_THWC


@torch.no_grad()
def decode_frames(autoencoder: Autoencoder, latent_BCTHW: Tensor) -> Iterator[UInt8Array]:
    """Yield the frames `[H, W, 3]` of the latents of one sample, those of `decode_video` up to rounding.

    With the autoencoders `linear` and `causal`, and with those that decode each frame alone, memory does not grow with
    the number of frames.
    """
    for video_BCTHW in autoencoder.decode_stream([latent_BCTHW]):
        yield from to_pixels(video_BCTHW)[0].numpy()


def to_pixels(video_BCTHW: Tensor) -> Tensor:
    """Return a decoded video in [-1, 1] as uint8 `[B, T, H, W, C]` on the CPU."""
    return to_uint8(video_BCTHW).permute(0, 2, 3, 4, 1).contiguous().cpu()
