"""Autoencoder `linear`: principal components of spacetime blocks of real footage, fitted once and shipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cluster.storage import digest
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders._linear_weights import SPACE_FACTOR, weights_bytes

if TYPE_CHECKING:
    import torch


class Linear(AutoencoderSettings):
    """Settings of a block transform by principal components: fast, and the same on every machine.

    The first frame is cut into blocks of 1x8x8 pixels, and each later group of 4 frames into blocks of 4x8x8. A mean
    block is subtracted, and the rest is projected on an orthonormal basis. The decoder inverts this exactly within the
    space that the basis spans. `weights/README.md` gives the loss in dB.
    """

    space_factor: ClassVar[int | None] = SPACE_FACTOR
    name: str = "linear"
    channels: Literal[16, 48] = Field(
        16, description="Latent channels; 48 keep more detail and cost the model three times the values."
    )

    def identity(self) -> str:
        return f"linear{self.channels}-{digest(weights_bytes(self.channels), size_bytes=6)}"

    def open(self, device: torch.device | str = "cpu") -> Autoencoder:
        # Settings are read by every command, and importing torch takes 2 s.
        from training.autoencoders._linear_blocks import LinearAutoencoder, load_weights

        return LinearAutoencoder(load_weights(self.channels), self.identity(), device)
