"""Autoencoder `linear`: principal components of spacetime blocks of real footage, fitted once and shipped."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cluster.storage import digest
from training.autoencoder import Autoencoder, AutoencoderSettings

if TYPE_CHECKING:
    import torch

TIME_FACTOR = 4
"""Frames of a group, which share one latent frame."""

SPACE_FACTOR = 8
"""Side of a block in pixels."""


class Linear(AutoencoderSettings):
    """Block transform whose bases are principal components: exact to invert, instant, and the same on every machine.

    The first frame is cut into blocks of 1x8x8 pixels and each later group of 4 frames into blocks of 4x8x8; a block's
    mean is subtracted and the rest projected on an orthonormal basis. `weights/README.md` gives the loss in dB.
    """

    name: str = "linear"
    channels: Literal[16, 48] = Field(16, description="Latent channels; 48 keep more detail and cost the model three times the values.")

    def identity(self) -> str:
        return f"linear{self.channels}-{digest(weights_bytes(self.channels), size_bytes=6)}"

    def open(self, device: torch.device | str = "cpu") -> Autoencoder:
        # Settings are read by every command, and importing torch takes 2 s.
        from training.autoencoders._linear_blocks import LinearAutoencoder, load_weights

        return LinearAutoencoder(load_weights(self), self.identity(), device)


@cache
def weights_bytes(channels: int) -> bytes:
    """The shipped file for so many channels."""
    return resources.files("training.autoencoders.weights").joinpath(f"linear{channels}.safetensors").read_bytes()
