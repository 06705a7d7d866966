"""Model `unet`: a convolutional U-Net with separate filters for space and time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from training.model import ModelSettings

if TYPE_CHECKING:
    from training.network import VideoModel


class UNet(ModelSettings):
    """A small U-Net for short clips. Each coarser level has half the rows and columns and twice the channels.

    Noise level, presentation time, conditioning mask and text scale and shift the channels of every block (FiLM, Perez
    et al. 2018).
    """

    mixes_shapes: ClassVar[bool] = False
    """The network pads the samples of a micro-batch to one size."""

    name: str = "unet"
    width: int = Field(64, ge=8, description="Channels of the finest level.")
    levels: int = Field(3, ge=1, le=5, description="Number of levels.")
    blocks: int = Field(1, ge=1, description="Blocks per level in the encoder, and as many in the decoder.")

    def build(self, channels: int, text_dim: int) -> VideoModel:
        """Return the network. It imports torch, which settings must not."""
        from example_plugins._unet_network import UNetNetwork

        return UNetNetwork(self, channels, text_dim)

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Return the number of 2x2 cells, so that noise is shifted as for a transformer with patches of that size."""
        return frames * -(-height // 2) * -(-width // 2)

    def flops(self, tokens: int, text_tokens: int) -> int:
        """Return the operations of all blocks.

        A block has 9 weights per pair of channels in space and 3 in time. Each level costs the same: it has a quarter
        of the cells and twice the channels of the one before.
        """
        weights = self.levels * 2 * self.blocks * (9 + 3) * self.width**2
        cells = 4 * tokens
        return 2 * cells * weights
