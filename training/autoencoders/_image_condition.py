"""An autoencoder whose latents also hold what models of image to video are conditioned on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from training.autoencoder import Autoencoder

# Shape suffixes: B videos, C latent channels or colours, T H W frames, rows and columns.


class ImageConditioned(Autoencoder):
    """An autoencoder whose latents have twice the channels: those of a video, and those of its first frame followed by
    grey, as WanImageToVideoPipeline encodes an image.
    """

    def __init__(self, own: Autoencoder) -> None:
        self._own, self.channels = own, 2 * own.channels
        self.time_factor, self.space_factor, self.identity = own.time_factor, own.space_factor, own.identity
        self.mean, self.std = 2 * own.mean, 2 * own.std

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        image_BCTHW = torch.zeros_like(video_BCTHW)
        image_BCTHW[:, :, :1] = video_BCTHW[:, :, :1]
        return torch.cat((self._own.encode(video_BCTHW), self._own.encode(image_BCTHW)), dim=1)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Return the pixels of latents, with or without the further channels."""
        return self._own.decode(latent_BCTHW[:, : self._own.channels])

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        yield from self._own.decode_stream(latent_BCTHW[:, : self._own.channels] for latent_BCTHW in latents)
