"""The contract of an autoencoder: pixels to normalised latents and back, causal in time."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar

from cluster.plugins import Plugin
from training.data.buckets import latent_size

if TYPE_CHECKING:
    # Settings are read by every command, and importing torch takes 2 s.
    import torch
    from torch import Tensor

FOLDER = "training.autoencoders"


class Autoencoder(abc.ABC):
    """Pixels `[B, 3, T, H, W]` in [-1, 1] to latents `[B, C, t, h, w]` of zero mean and unit variance, and back.

    The first frame is encoded alone and each later latent frame covers `time_factor` frames, so T = 1 + k * time_factor,
    t = 1 + k, and an image is a video of one frame. H and W are multiples of `space_factor`.
    """

    time_factor: int
    space_factor: int
    channels: int
    identity: str
    """Name and hash of the weights; latents of different identities never mix."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Statistics that normalised the latents, per channel, recorded with every shard."""

    @abc.abstractmethod
    def encode(self, video_BCTHW: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Latents to pixels; values may leave [-1, 1] a little, and the caller clamps."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`(C, t, h, w)` for a video of that size. Raises `ValueError` for a size this autoencoder cannot take."""
        if frames < 1 or (frames - 1) % self.time_factor:
            below = max(1, 1 + (frames - 1) // self.time_factor * self.time_factor)
            raise ValueError(
                f"{frames} frames: this autoencoder takes 1 + a multiple of {self.time_factor} frames; take {below} or {below + self.time_factor}"
            )
        if height % self.space_factor or width % self.space_factor or height < 1 or width < 1:
            near = "x".join(
                str(max(1, round(side / self.space_factor)) * self.space_factor) for side in (width, height)
            )
            raise ValueError(f"{width}x{height}: both sides must be multiples of {self.space_factor}; {near} is near")
        return self.channels, *latent_size(width, height, frames, self.time_factor, self.space_factor)


class AutoencoderSettings(Plugin):
    """Settings of an autoencoder, by `name`. One subclass a file in `training/autoencoders/`."""

    version: ClassVar[int] = 1

    @abc.abstractmethod
    def open(self, device: torch.device | str = "cpu") -> Autoencoder:
        """Load the weights. Raises `ValueError` naming the path or id that cannot be loaded."""

    @abc.abstractmethod
    def identity(self) -> str:
        """As `Autoencoder.identity`, without loading anything large."""
