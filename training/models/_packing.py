"""Packs: samples of mixed shapes cut into patches, and their tokens laid one after the other in one sequence.

Every layer before and after the blocks is called once per pack, however many shapes it holds: ZeRO-3 gathers a layer's
weights at each call, and all ranks have to make the same number of calls.

Shape suffixes: B samples of one shape, C latent channels, T H W frames, rows and columns; S tokens of a sample or of
the whole pack.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Patch = tuple[int, int, int]
"""Latent frames, rows and columns per token."""


@dataclass(frozen=True)
class Packing:
    """The order of a pack's samples in the packed sequence, and how many tokens each has.

    Samples of one latent shape form a group and are adjacent. Within a group, samples with texts of equal length are
    adjacent, so that attention sees few groups of equal lengths. For samples that all differ in this, the order does
    not depend on that of the arguments.
    """

    groups: tuple[tuple[int, ...], ...]
    """Indices of the samples in each group."""
    tokens: tuple[int, ...]
    """Tokens of each sample, in packed order."""
    frames: tuple[int, ...]
    """Token frames of each sample, in packed order."""

    @classmethod
    def of(cls, latents: Sequence[Tensor], texts: Sequence[Tensor], patch: Patch) -> Packing:
        """Return the packing of latents `[C, T, H, W]` with texts `[N, E]`."""

        def shape(sample: int) -> tuple[int, ...]:
            return tuple(latents[sample].shape)

        order = sorted(range(len(latents)), key=lambda sample: (shape(sample), len(texts[sample])))
        groups = tuple(tuple(samples) for _, samples in itertools.groupby(order, key=shape))
        grids = [token_grid(latents[sample].shape, patch) for sample in order]
        return cls(groups, tuple(t * h * w for t, h, w in grids), tuple(t for t, _, _ in grids))

    @property
    def order(self) -> list[int]:
        """Indices of the samples in packed order."""
        return list(itertools.chain(*self.groups))

    @property
    def equal_frames(self) -> bool:
        """Whether all token frames of the pack have the same number of tokens."""
        return len({tokens // frames for tokens, frames in zip(self.tokens, self.frames, strict=True)}) == 1

    def frame_of_token(self, device: torch.device) -> Tensor:
        """Return `[S]`: the index of each token's frame among all token frames of the pack."""
        frame_tokens = integer_tensor(
            [tokens // frames for tokens, frames in zip(self.tokens, self.frames, strict=True) for _ in range(frames)],
            device,
        )
        return torch.arange(len(frame_tokens), device=device).repeat_interleave(
            frame_tokens, output_size=sum(self.tokens)
        )

    def unpack(self, x_SD: Tensor) -> list[Tensor]:
        """Split a packed sequence into the samples' parts and return them in the samples' own order."""
        parts = dict(zip(self.order, torch.split(x_SD, list(self.tokens)), strict=True))
        return [parts[sample] for sample in range(len(parts))]


def integer_tensor(values: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return the values on the device, for whose copy the host does not wait: `torch.tensor(device=...)` does."""
    values_N = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda" and torch.cuda.is_available())
    return values_N.to(device, non_blocking=True)


def token_grid(shape: Sequence[int], patch: Patch) -> tuple[int, int, int]:
    """Return the token frames, rows and columns of a latent of `shape` (C, T, H, W)."""
    frames, height, width = (-(-size // side) for size, side in zip(shape[1:], patch, strict=True))
    return frames, height, width


def patchify(x_BCTHW: Tensor, patch: Patch) -> Tensor:
    """Return tokens `[B, S, C * p * q * r]` in order of frame, row and column.

    Sides that the patch does not divide are padded with zeros.
    """
    p, q, r = patch
    # F.pad takes the last axis first, with both ends of each.
    pads = [pad for size, side in zip(reversed(x_BCTHW.shape[2:]), (r, q, p), strict=True) for pad in (0, -size % side)]
    x = F.pad(x_BCTHW, pads)
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames // p, p, height // q, q, width // r, r)
    # B C T p H q W r -> B T H W C p q r
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def unpatchify(x_SD: Tensor, shape: torch.Size, patch: Patch) -> Tensor:
    """Return a latent of `shape` (C, T, H, W) from its tokens: the inverse of `patchify`, for one sample."""
    (channels, *sizes), (p, q, r) = shape, patch
    frames, height, width = token_grid(shape, patch)
    x = x_SD.reshape(frames, height, width, channels, p, q, r)
    # T H W C p q r -> C T p H q W r
    x = x.permute(3, 0, 4, 1, 5, 2, 6).reshape(channels, frames * p, height * q, width * r)
    return x[:, : sizes[0], : sizes[1], : sizes[2]]


def stack_groups(values: Sequence[Tensor], packing: Packing) -> list[Tensor]:
    """Stack one tensor per sample into one `[B, ...]` per group."""
    return [torch.stack([values[sample] for sample in group]) for group in packing.groups]


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Return the concatenation along the first axis; a single part is returned without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def call_once(layer: nn.Module, parts: Sequence[Tensor]) -> list[Tensor]:
    """Return the layer's result for each of several tensors `[..., features]`, computed in one call."""
    result: Tensor = layer(concatenate([part.flatten(0, -2) for part in parts]))
    shapes = [part.shape[:-1] for part in parts]
    rows = torch.split(result, [shape.numel() for shape in shapes])
    return [torch.unflatten(x, 0, shape) for x, shape in zip(rows, shapes, strict=True)]
