"""The network of the model `unet`.

Suffixes name axes: B samples, T latent frames, H rows, W columns, C channels, D width of the condition.
Samples of a pack are padded to one size, and padding is set to zero before each filter. So a sample has the same zeros
around it in every pack, and each layer is called once per pack, however many shapes the pack has.
"""

import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.network import Condition, VideoModel

OCTAVES = 6


class UNetNetwork(VideoModel):
    """A U-Net whose skip connections are added."""

    def __init__(self, width: int, levels: int, blocks: int, channels: int, text_dim: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        dim = 4 * width
        self.words = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU())
        self.frames = nn.Linear(4 * OCTAVES + 2, dim)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.first = Space(channels, width)
        self.down = nn.ModuleList(_blocks(size, dim, blocks) for size in widths)
        self.up = nn.ModuleList(_blocks(size, dim, blocks) for size in widths)
        self.shrink = nn.ModuleList(nn.Linear(4 * fine, coarse) for fine, coarse in pairwise(widths))
        self.grow = nn.ModuleList(nn.Linear(coarse, 4 * fine) for fine, coarse in pairwise(widths))
        self.last = Space(width, channels)

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Return one float32 prediction per latent, of the latent's shape."""
        cell = 2 ** len(self.shrink)
        frames, height, width = (max(latent.shape[axis] for latent in latents) for axis in (1, 2, 3))
        size = (frames, -(-height // cell) * cell, -(-width // cell) * cell)
        x = torch.stack([_pad(latent, size) for latent in latents]).to(self.frames.weight.dtype)
        mask = torch.stack([_pad(torch.ones_like(latent[:1]), size) for latent in latents]).to(x.dtype)
        masks = [mask.movedim(1, -1)]
        for _ in self.shrink:
            masks.append(_fold(masks[-1]).amax(dim=-1, keepdim=True))
        condition_BTD = self._condition(condition, frames)

        x, skips = self.first(x.movedim(1, -1)), []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, condition_BTD, masks[level])
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](_fold(x * masks[level]))
        for level in reversed(range(len(self.up))):
            if level < len(self.grow):
                x = _unfold(self.grow[level](x)) + skips.pop()
            for block in self.up[level]:
                x = block(x, condition_BTD, masks[level])
        y = self.last(F.gelu(_norm(x)) * masks[0]).movedim(-1, 1).float()
        return [p[:, : z.shape[1], : z.shape[2], : z.shape[3]] for p, z in zip(y, latents, strict=True)]

    def _condition(self, condition: Condition, frames: int) -> Tensor:
        """Return a vector per sample and latent frame: the mean of the words' features, and what the frame is."""
        lengths = [len(text) for text in condition.texts]
        dtype = self.frames.weight.dtype
        words_ND = self.words(torch.cat(list(condition.texts)).to(dtype))
        text_BD = torch.stack([words.mean(dim=0) for words in words_ND.split(lengths)])
        rows = []
        for i, time_T in enumerate(condition.times):
            given_T, fps_T = condition.conditioning_masks[i], condition.fps_B[i].log2().expand_as(time_T) / 8
            waves = [_waves(time_T), _waves(condition.seconds[i] / 8)]
            row = torch.cat([*waves, torch.stack([given_T, fps_T], dim=-1)], dim=-1)
            rows.append(F.pad(row, (0, 0, 0, frames - len(row))))
        return self.mix(self.frames(torch.stack(rows).to(dtype)) + text_BD[:, None])

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        """Return a function that fills a weight by its name: zeros for biases, FiLM and the last layer, else noise."""
        seed = int(torch.randint(2**31, ()))

        def initialise(weight: nn.Parameter, name: str) -> None:
            rng = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            is_zero = weight.ndim == 1 or "film" in name or name.startswith("last")
            scale = 0.0 if is_zero else weight[0].numel() ** -0.5
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=rng) * scale)

        return initialise


class Block(nn.Module):
    """A 3x3 filter over space and a filter over three frames, added to the input."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.film = nn.Linear(dim, 2 * width)
        self.space = Space(width, width)
        self.time = nn.Linear(3 * width, width)

    def forward(self, x_BTHWC: Tensor, condition_BTD: Tensor, mask_BTHW1: Tensor) -> Tensor:
        """Return the input and what the filters make of it."""
        scale, shift = self.film(condition_BTD)[:, :, None, None].chunk(2, dim=-1)
        y = F.gelu(self.space((_norm(x_BTHWC) * (1 + scale) + shift) * mask_BTHW1)) * mask_BTHW1
        y = F.pad(y, (0, 0, 0, 0, 0, 0, 1, 1))
        return x_BTHWC + self.time(torch.cat([y[:, :-2], y[:, 1:-1], y[:, 2:]], dim=-1))


def _blocks(width: int, dim: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, dim) for _ in range(blocks))


class Space(nn.Conv2d):
    """A 3x3 convolution of each frame, with channels as the last axis."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Convolve the frames."""
        y = super().forward(x_BTHWC.flatten(0, 1).movedim(-1, 1))
        return y.movedim(1, -1).unflatten(0, x_BTHWC.shape[:2])


def _norm(x_BTHWC: Tensor) -> Tensor:
    """Return the channels of each cell with mean 0 and variance 1. Cells do not see each other."""
    return F.layer_norm(x_BTHWC, x_BTHWC.shape[-1:])


def _fold(x_BTHWC: Tensor) -> Tensor:
    """Return each 2x2 cells as one with four times the channels."""
    return x_BTHWC.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(-3)


def _unfold(x_BTHWC: Tensor) -> Tensor:
    """Undo `_fold`."""
    return x_BTHWC.unflatten(-1, (2, 2, -1)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def _pad(latent_CTHW: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Return a latent with zeros after its frames, rows and columns."""
    frames, height, width = (full - part for full, part in zip(size, latent_CTHW.shape[1:], strict=True))
    return F.pad(latent_CTHW, (0, width, 0, height, 0, frames))


def _waves(values_T: Tensor) -> Tensor:
    """Return sines and cosines of the values at doubling frequencies."""
    angles = values_T.float()[:, None] * torch.pi * 2.0 ** torch.arange(OCTAVES, device=values_T.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
