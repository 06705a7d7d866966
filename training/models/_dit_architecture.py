"""Architectures of diffusion transformers: sizes by name, and their cost. Needs neither torch nor pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Size(NamedTuple):
    """Number of blocks, model width, and number of attention heads."""

    depth: int
    dim: int
    heads: int


PRESETS = {
    "nano": Size(4, 128, 4),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 9),
    "1.3B": Size(30, 1536, 12),
}
"""Sizes by name. S to XL are those of DiT (Peebles and Xie 2023, table 1), 1.3B is that of Wan 2.1 (2025); nano trains
on a laptop.

Heads are 32, 64 or 128 wide, for which attention kernels on GPUs add no padding. XL of DiT has 16 heads of 72, which
they would pad to 128."""


@dataclass(frozen=True)
class Architecture:
    """The hyperparameters that determine a transformer's weights."""

    size: Size
    hidden: int
    """Width of the feed-forward layers."""
    patch: tuple[int, int, int]
    """Latent frames, rows and columns per token."""
    channels: int
    """Latent channels."""
    text_dim: int
    """Width of text tokens."""


def flops(size: Size, hidden: int, tokens: int, text_tokens: int) -> int:
    """Return the operations of the blocks' forward pass for one sample; a multiplication and an addition count as two.

    L blocks of width d with feed-forward layers of width h, S tokens, N text tokens: L [(12 d^2 + 4 d h) S + 4 d S^2 +
    4 d^2 N + 4 d S N]. All matrix products of the blocks are counted, exactly. The layers before and after the blocks
    are left out: they are under 1% at 100 tokens per frame and more, from size S upwards. Training takes three times as
    many operations, or four with every block recomputed.
    """
    depth, dim, _ = size
    linear = (12 * dim * dim + 4 * dim * hidden) * tokens + 4 * dim * dim * text_tokens
    return depth * (linear + 4 * dim * tokens * (tokens + text_tokens))


def joint_flops(size: Size, hidden: int, tokens: int) -> int:
    """Return the operations of blocks through which text and latents pass in one sequence of `tokens`: with the letters
    of `flops`, L [(8 d^2 + 4 d h) S + 4 d S^2].
    """
    depth, dim, _ = size
    return depth * ((8 * dim * dim + 4 * dim * hidden) * tokens + 4 * dim * tokens * tokens)
