"""The convolutions of the autoencoder `causal`, which correct its linear part. This module needs nothing but torch, so
that it can be benchmarked where the package is not installed.

Shape suffixes: B videos, C channels, T H W frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from training.autoencoders._causal_layers import (
    Block,
    FrameCache,
    Head,
    SpaceConv,
    blocks_to_channels,
    channels_to_blocks,
)
from training.autoencoders._linear_weights import SPACE_FACTOR, TIME_FACTOR

CHANNELS = 16
"""Latent channels."""
PATCH_TIME, PATCH_SPACE = 2, 4
"""Frames, and pixels a side, of the blocks that become channels at the fine size."""
PATCH_VALUES = 3 * PATCH_TIME * PATCH_SPACE**2
"""Pixel values of such a block: 96."""
STEP_TIME, STEP_SPACE = TIME_FACTOR // PATCH_TIME, SPACE_FACTOR // PATCH_SPACE
"""Fine frames, and fine cells a side, of the blocks that become channels at the coarse size, which is the latents'."""
# The attributes of modules are the names of weights in files, and the fields of `CausalArchitecture` are in the header:
# to rename one makes all files unreadable.


@dataclass(frozen=True)
class CausalArchitecture:
    """The widths of a network and its numbers of blocks, at 1/4 of height and width (`fine`) and at 1/8 (`coarse`)."""

    fine: int
    coarse: int
    encoder_fine: int
    encoder_coarse: int
    decoder_fine: int
    decoder_coarse: int

    @property
    def receptive_radius(self) -> int:
        """Most latent cells between a latent cell and the pixels it depends on, or the pixels that depend on it.

        A 3x3 convolution reads one pixel further in each direction, at its own scale.
        """
        encoder = self.encoder_fine * PATCH_SPACE + (self.encoder_coarse + 1) * SPACE_FACTOR
        decoder = (self.decoder_fine + 1) * PATCH_SPACE + (self.decoder_coarse + 1) * SPACE_FACTOR
        return -(-max(encoder, decoder) // SPACE_FACTOR)


PRESETS: Mapping[str, CausalArchitecture] = {
    "tiny": CausalArchitecture(16, 16, 1, 1, 1, 1),
    "small": CausalArchitecture(128, 160, 2, 3, 4, 3),
    "large": CausalArchitecture(256, 640, 3, 5, 5, 6),
}
"""Architectures by name; tiny is for tests."""


class Encoder(nn.Module):
    """The convolutions from pixels to corrections of the latents."""

    def __init__(self, architecture: CausalArchitecture) -> None:
        super().__init__()
        self.enter = nn.Linear(PATCH_VALUES, architecture.fine)
        self.fine = nn.ModuleList(Block(architecture.fine) for _ in range(architecture.encoder_fine))
        self.down = nn.Linear(STEP_TIME * STEP_SPACE**2 * architecture.fine, architecture.coarse)
        self.coarse = nn.ModuleList(Block(architecture.coarse) for _ in range(architecture.encoder_coarse))
        self.leave = Head(architecture.coarse, 2 * CHANNELS)

    def forward(self, pixels_BTHWC: Tensor, cache: FrameCache | None = None) -> Tensor:
        """Return mean and log-variance `[B, t, H / 8, W / 8, 2 * CHANNELS]` of full groups `[B, 4t, H, W, 3]`."""
        x_BTHWC = self.enter(blocks_to_channels(pixels_BTHWC, PATCH_TIME, PATCH_SPACE))
        for block in self.fine:
            x_BTHWC = block(x_BTHWC, cache)
        x_BTHWC = self.down(blocks_to_channels(x_BTHWC, STEP_TIME, STEP_SPACE))
        for block in self.coarse:
            x_BTHWC = block(x_BTHWC, cache)
        y_BTHWC: Tensor = self.leave(x_BTHWC)
        return y_BTHWC


class Decoder(nn.Module):
    """The convolutions from latents to corrections of the pixels."""

    def __init__(self, architecture: CausalArchitecture) -> None:
        super().__init__()
        self.enter = SpaceConv(CHANNELS, architecture.coarse)
        self.coarse = nn.ModuleList(Block(architecture.coarse) for _ in range(architecture.decoder_coarse))
        self.up = nn.Linear(architecture.coarse, STEP_TIME * STEP_SPACE**2 * architecture.fine)
        self.fine = nn.ModuleList(Block(architecture.fine) for _ in range(architecture.decoder_fine))
        self.leave = Head(architecture.fine, PATCH_VALUES)

    def forward(self, latent_BTHWC: Tensor, cache: FrameCache | None = None) -> Tensor:
        """Return the pixels of full groups `[B, 4t, 8h, 8w, 3]` from latents `[B, t, h, w, CHANNELS]`."""
        x_BTHWC = self.enter(latent_BTHWC)
        for block in self.coarse:
            x_BTHWC = block(x_BTHWC, cache)
        x_BTHWC = channels_to_blocks(self.up(x_BTHWC), STEP_TIME, STEP_SPACE)
        for block in self.fine:
            x_BTHWC = block(x_BTHWC, cache)
        return channels_to_blocks(self.leave(x_BTHWC), PATCH_TIME, PATCH_SPACE)
