"""Sizes of diffusion transformers by name, and what they cost. Plain Python, so that whoever only counts imports neither torch nor pydantic."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Blocks, width, and attention heads."""

    depth: int
    dim: int
    heads: int


PRESETS = {
    "nano": Size(4, 128, 4),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
    "1.3B": Size(30, 1536, 12),
}
"""S to XL are the sizes of DiT (Peebles and Xie 2023, table 1), 1.3B that of Wan 2.1 (2025); nano trains on a laptop."""


def flops(size: Size, hidden: int, tokens: int, text_tokens: int) -> int:
    """Forward operations of the blocks for one sample: every matrix product counted, two operations a multiplication and addition.

    L blocks of width d with feed-forward layers of width h, S tokens, N text tokens: L [(12 d^2 + 4 d h) S + 4 d S^2 + 4 d^2 N + 4 d S N].
    That is exact for the blocks. What stands before and after them is left out: under 1% at 100 tokens a frame and more, from S upwards.
    Training takes three times as much, or four with every block's activations computed again.
    """
    depth, dim, _ = size
    linear = (12 * dim * dim + 4 * dim * hidden) * tokens + 4 * dim * dim * text_tokens
    return depth * (linear + 4 * dim * tokens * (tokens + text_tokens))
