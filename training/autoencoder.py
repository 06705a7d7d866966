"""The contract of an autoencoder, which maps pixels to normalised latents and back and is causal in time."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from cluster.plugins import Plugin
from training.data.buckets import latent_size

if TYPE_CHECKING:
    # Every command reads settings, and importing torch takes 2 s.
    import torch
    from torch import Tensor

FOLDER = "training.autoencoders"


class Autoencoder(abc.ABC):
    """A map from pixels `[B, 3, T, H, W]` in [-1, 1] to latents `[B, C, t, h, w]` of mean 0 and variance 1, and back.

    The first frame is encoded alone, and each later latent frame covers `time_factor` frames. So T = 1 + k *
    time_factor, t = 1 + k, and an image is a video of one frame. H and W are multiples of `space_factor`.
    """

    time_factor: int
    space_factor: int
    channels: int
    identity: str
    """Name and hash of the weights; latents of different identities never mix."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation per channel, by which latents are normalised; recorded with every shard."""

    @abc.abstractmethod
    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Return the latents `[B, C, t, h, w]` of pixels."""

    @abc.abstractmethod
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Return the pixels `[B, 3, T, H, W]` of latents; values may leave [-1, 1] a little, and the caller clamps."""

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the pixels of one video whose latents come in pieces `[B, C, t, h, w]` of any length, in order.

        Concatenated, they are those of `decode` for all latents, up to rounding. Here they are decoded as a whole;
        autoencoders that need not wait for all latents yield pixels of few of them at a time.
        """
        import torch

        yield self.decode(torch.cat(list(latents), dim=2))

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the latent shape (C, t, h, w) of a video of this size.

        Raises `ValueError` for a size that this autoencoder cannot encode.
        """
        if frames < 1 or (frames - 1) % self.time_factor:
            below = max(1, 1 + (frames - 1) // self.time_factor * self.time_factor)
            raise ValueError(
                f"{frames} frames: this autoencoder takes 1 + a multiple of {self.time_factor} frames; "
                f"take {below} or {below + self.time_factor}"
            )
        if height % self.space_factor or width % self.space_factor or height < 1 or width < 1:
            near = "x".join(
                str(max(1, round(side / self.space_factor)) * self.space_factor) for side in (width, height)
            )
            raise ValueError(f"{width}x{height}: both sides must be multiples of {self.space_factor}; {near} is near")
        return self.channels, *latent_size(width, height, frames, self.time_factor, self.space_factor)


class AutoencoderSettings(Plugin):
    """Settings of an autoencoder, chosen by `name`. Each file in `training/autoencoders/` has one subclass."""

    version: ClassVar[int] = 1
    space_factor: ClassVar[int | None] = None
    """`Autoencoder.space_factor`, by which recipes are checked; None if only `open` finds it out."""

    @abc.abstractmethod
    def open(self, device: torch.device | str = "cpu") -> Autoencoder:
        """Load the weights and return the autoencoder. Raises `ValueError` with a path or id that cannot be loaded."""

    @abc.abstractmethod
    def identity(self) -> str:
        """Return `Autoencoder.identity`, without loading anything large."""
