"""Model `unet`: a convolutional U-Net with separate filters for space and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from training.model import ModelSettings

if TYPE_CHECKING:
    from training.network import VideoModel


class UNet(ModelSettings):
    """A small U-Net for short clips. Each level down halves rows and columns and doubles the channels.

    Noise level, time, conditioning mask and text scale and shift the channels of every block (FiLM, Perez et al. 2018).
    """

    name: str = "unet"
    width: int = Field(64, ge=8, description="Channels of the finest level.")
    levels: int = Field(3, ge=1, le=5, description="Number of levels.")
    blocks: int = Field(1, ge=1, description="Blocks per level, on the way down and again on the way up.")

    def build(self, channels: int, text_dim: int) -> VideoModel:
        """Return a network with initial weights, or without memory under `torch.device("meta")`."""
        import torch

        from example_plugins.unet_network import UNetNetwork

        device = torch.get_default_device()
        with torch.device("meta"):  # The layers' own initial values would be drawn and overwritten.
            network = UNetNetwork(self.width, self.levels, self.blocks, channels, text_dim)
        if device.type != "meta":
            network.to_empty(device=device)
            network.initialise()
        return network

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Return the number of 2x2 cells, so that noise is shifted as for a transformer with patches of that size."""
        return frames * -(-height // 2) * -(-width // 2)

    def flops(self, tokens: int, text_tokens: int) -> int:
        """Return the operations of all blocks. Every level costs the same: a quarter of the cells, twice the width."""
        per_cell = self.levels * 2 * self.blocks * (9 + 3) * self.width**2
        return 2 * 4 * tokens * per_cell
