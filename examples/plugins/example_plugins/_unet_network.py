"""The network of the model `unet`.

The samples of a pack are padded with zeros to one size, so that each layer is called once per pack. Padding is set to
zero again before each filter. A sample is therefore surrounded by the same zeros in every pack, and its prediction does
not depend on the other samples.

Shape suffixes: B samples, T latent frames, H rows, W columns, C channels, N text tokens, D width of the condition.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.network import Condition, VideoModel

if TYPE_CHECKING:
    from example_plugins.unet import UNet

OCTAVES = 6
"""Number of frequencies that encode a noise level or a time."""
MAX_SECONDS = 8.0
"""Presentation time, in seconds, that the lowest frequency encodes without repeating."""


class UNetNetwork(VideoModel):
    """A U-Net with additive skip connections. With the initial weights its output is 0."""

    def __init__(self, settings: UNet, channels: int, text_dim: int) -> None:
        super().__init__()
        widths = [settings.width * 2**level for level in range(settings.levels)]
        dim = 4 * settings.width
        self.text_in = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU())
        self.frame_in = nn.Linear(4 * OCTAVES + 1, dim)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.conv_in = SpatialConv(channels, settings.width)
        self.encoder = nn.ModuleList(Level(width, dim, settings.blocks) for width in widths)
        self.decoder = nn.ModuleList(Level(width, dim, settings.blocks) for width in widths)
        self.down = nn.ModuleList(nn.Linear(4 * fine, coarse) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(nn.Linear(coarse, 4 * fine) for fine, coarse in pairwise(widths))
        self.conv_out = SpatialConv(settings.width, channels)

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Return a float32 prediction per latent `[C, T, H, W]`, of the same shape."""
        dtype = self.frame_in.weight.dtype
        x_BTHWC = self._pad(latents).to(dtype)
        masks = [self._pad([torch.ones_like(latent[:1]) for latent in latents]).to(dtype)]
        for _ in self.down:
            masks.append(_merge_cells(masks[-1]).amax(dim=-1, keepdim=True))
        condition_BTD = self._embed(condition, frames=x_BTHWC.shape[1])

        x, skips = self.conv_in(x_BTHWC), []
        for level, encode in enumerate(self.encoder):
            x = encode(x, condition_BTD, masks[level])
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](_merge_cells(x * masks[level]))
        for level in reversed(range(len(self.decoder))):
            if level < len(self.up):
                x = _split_cells(self.up[level](x)) + skips.pop()
            x = self.decoder[level](x, condition_BTD, masks[level])
        y_BCTHW = self.conv_out(F.gelu(_normalise(x)) * masks[0]).movedim(-1, 1).float()
        shapes = [latent.shape[1:] for latent in latents]
        return [y_CTHW[:, :frames, :rows, :cols] for y_CTHW, (frames, rows, cols) in zip(y_BCTHW, shapes, strict=True)]

    def _pad(self, latents: Sequence[Tensor]) -> Tensor:
        """Return latents `[C, T, H, W]` as one tensor `[B, T, H, W, C]`, with zeros after their ends.

        Rows and columns become multiples of the factor between the finest and the coarsest level.
        """
        factor = 2 ** len(self.down)
        frames, height, width = (max(latent.shape[axis] for latent in latents) for axis in (1, 2, 3))
        height, width = -(-height // factor) * factor, -(-width // factor) * factor
        padded = []
        for latent in latents:
            _, t, h, w = latent.shape
            padded.append(F.pad(latent, (0, width - w, 0, height - h, 0, frames - t)))
        return torch.stack(padded).movedim(1, -1)

    def _embed(self, condition: Condition, frames: int) -> Tensor:
        """Return the condition `[B, T, D]` of each latent frame, padded to the largest number of frames."""
        dtype = self.frame_in.weight.dtype
        lengths = [len(text_NE) for text_NE in condition.texts]
        tokens_ND = self.text_in(torch.cat(list(condition.texts)).to(dtype))
        text_BD = torch.stack([text_ND.mean(dim=0) for text_ND in tokens_ND.split(lengths)])
        features = []
        for time_T, mask_T, seconds_T in zip(
            condition.times, condition.conditioning_masks, condition.seconds, strict=True
        ):
            row = torch.cat([_waves(time_T), _waves(seconds_T / MAX_SECONDS), mask_T[:, None]], dim=-1)
            features.append(F.pad(row, (0, 0, 0, frames - len(row))))
        frames_BTD = self.frame_in(torch.stack(features).to(dtype))
        embedding: Tensor = self.condition(frames_BTD + text_BD[:, None])
        return embedding

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        """Return a function that fills a weight by its name: zeros in biases, FiLM and the last layer, else noise."""
        seed = int(torch.randint(2**31, (), device="cpu"))

        def initialise(weight: nn.Parameter, name: str) -> None:
            rng = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            is_zero = weight.ndim == 1 or "film" in name or name.startswith("conv_out")
            std = 0.0 if is_zero else weight[0].numel() ** -0.5
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=rng) * std)

        return initialise


class Block(nn.Module):
    """A residual block: a 3x3 filter over space, then a filter over three latent frames."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.film = nn.Linear(dim, 2 * width)
        self.space = SpatialConv(width, width)
        self.time = nn.Linear(3 * width, width)

    def forward(self, x_BTHWC: Tensor, condition_BTD: Tensor, mask_BTHW1: Tensor) -> Tensor:
        """Return the input plus the output of the filters. The mask is 0 where the pack is padded."""
        scale, shift = self.film(condition_BTD)[:, :, None, None].chunk(2, dim=-1)
        modulated = _normalise(x_BTHWC) * (1 + scale) + shift
        y = F.gelu(self.space(modulated * mask_BTHW1)) * mask_BTHW1
        y = F.pad(y, (0, 0, 0, 0, 0, 0, 1, 1))
        neighbours = torch.cat([y[:, :-2], y[:, 1:-1], y[:, 2:]], dim=-1)
        result: Tensor = x_BTHWC + self.time(neighbours)
        return result


class Level(nn.Module):
    """The blocks of one level of the encoder or the decoder."""

    def __init__(self, width: int, dim: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, dim) for _ in range(count))

    def forward(self, x_BTHWC: Tensor, condition_BTD: Tensor, mask_BTHW1: Tensor) -> Tensor:
        """Return the output of the last block."""
        for block in self.blocks:
            x_BTHWC = block(x_BTHWC, condition_BTD, mask_BTHW1)
        return x_BTHWC


class SpatialConv(nn.Conv2d):
    """A 3x3 convolution of each latent frame, with channels as the last axis."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Return the convolved frames."""
        y = super().forward(x_BTHWC.flatten(0, 1).movedim(-1, 1))
        return y.movedim(1, -1).reshape(*x_BTHWC.shape[:-1], -1)


def _normalise(x_BTHWC: Tensor) -> Tensor:
    """Return channels with mean 0 and variance 1 in each latent cell, so that no cell affects another."""
    return F.layer_norm(x_BTHWC, x_BTHWC.shape[-1:])


def _merge_cells(x_BTHWC: Tensor) -> Tensor:
    """Return each square of 2x2 cells as one cell with four times the channels."""
    return F.pixel_unshuffle(x_BTHWC.movedim(-1, -3), 2).movedim(-3, -1)


def _split_cells(x_BTHWC: Tensor) -> Tensor:
    """Return each cell as 2x2 cells with a quarter of the channels, the inverse of `_merge_cells`."""
    return F.pixel_shuffle(x_BTHWC.movedim(-1, -3), 2).movedim(-3, -1)


def _waves(values_T: Tensor) -> Tensor:
    """Return sines and cosines of values in [0, 1] at frequencies that double, `[T, 2 * OCTAVES]`."""
    angles = values_T.float()[:, None] * torch.pi * 2.0 ** torch.arange(OCTAVES, device=values_T.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
