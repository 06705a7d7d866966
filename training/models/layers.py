"""Parts of diffusion transformers: sinusoidal features, 3-D rotary positions, attention, and modulation by a condition."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: B samples, T H W token frames, rows and columns, S = T * H * W tokens, P = H * W tokens of a frame,
# N text tokens, D model width, A heads, K rotary pairs of a head (half its width).

EPSILON = 1e-6
SHORTEST_S, LONGEST_S = 1.0, 128.0
"""Rotary wavelengths of time: at 8 frames a second latent frames lie 0.5 s apart, half the shortest; a minute fits the longest."""
SHORTEST_CELLS, LONGEST_CELLS = 8.0, 512.0
"""Rotary wavelengths of space in latent cells: 4 tokens of 2 cells, to the 4,096 pixels of the widest pictures at 8 pixels a cell."""


def sinusoids(value: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """`[..., dim]` cosines and sines of values at dim / 2 geometric frequencies from 1 to 1 / longest radians (Vaswani et al. 2017)."""
    frequency = torch.exp(-math.log(longest) / (dim // 2) * torch.arange(dim // 2, dtype=torch.float32, device=value.device))
    angle = value.to(torch.float32)[..., None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Rotation(NamedTuple):
    """Cosines and sines `[B, 1, S, K]` by which queries and keys are turned, shared by all heads."""

    cos: Tensor
    sin: Tensor


def rotary_split(n_pairs: int) -> tuple[int, int, int]:
    """How many of a head's rotary pairs turn with time, row and column: a quarter or a little more, and the rest halved."""
    space = n_pairs * 3 // 8
    return n_pairs - 2 * space, space, space


def rotation(seconds_BT: Tensor, row_H: Tensor, column_W: Tensor, n_pairs: int) -> Rotation:
    """3-D rotary positions (Su et al. 2021, per axis): time in seconds, rows and columns in latent cells.

    An inner product of a turned query and key depends on the differences of their positions alone.
    """
    n_time, n_row, n_column = rotary_split(n_pairs)
    time_BTK = seconds_BT.to(torch.float32)[..., None] * _frequencies(n_time, SHORTEST_S, LONGEST_S, seconds_BT.device)
    row_HK = row_H.to(torch.float32)[:, None] * _frequencies(n_row, SHORTEST_CELLS, LONGEST_CELLS, row_H.device)
    column_WK = column_W.to(torch.float32)[:, None] * _frequencies(n_column, SHORTEST_CELLS, LONGEST_CELLS, column_W.device)
    size = (*seconds_BT.shape, len(row_H), len(column_W))
    parts = (time_BTK[:, :, None, None], row_HK[None, None, :, None], column_WK[None, None, None])
    angle_BTHWK = torch.cat([part.expand(*size, part.shape[-1]) for part in parts], dim=-1)
    angle_B1SK = angle_BTHWK.flatten(1, 3)[:, None]
    return Rotation(angle_B1SK.cos(), angle_B1SK.sin())


def _frequencies(count: int, shortest: float, longest: float, device: torch.device) -> Tensor:
    wavelength = shortest * (longest / shortest) ** (torch.arange(count, dtype=torch.float32, device=device) / max(count - 1, 1))
    return 2 * math.pi / wavelength


def rotate(x_BASK2: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (k, k + K) of the last axis of `[B, A, S, 2K]` by its angle; computed in fp32, returned as given."""
    left, right = x_BASK2.to(torch.float32).chunk(2, dim=-1)
    return torch.cat((left * by.cos - right * by.sin, right * by.cos + left * by.sin), dim=-1).to(x_BASK2.dtype)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (Dehghani et al. 2023), to itself or to a text."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.query_norm = nn.RMSNorm(dim // heads, eps=EPSILON)
        self.key_norm = nn.RMSNorm(dim // heads, eps=EPSILON)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BSD: Tensor, to_BND: Tensor, turn: Rotation | None = None, mask_B11N: Tensor | None = None) -> Tensor:
        """Queries of `x` attend to keys and values of `to`; `turn` rotates both, `mask` is True where a key exists."""
        q_BASK2 = self.query_norm(self._split(self.query(x_BSD)))
        key, value = self.key_value(to_BND).chunk(2, dim=-1)
        k_BANK2, v_BANK2 = self.key_norm(self._split(key)), self._split(value)
        if turn is not None:
            q_BASK2, k_BANK2 = rotate(q_BASK2, turn), rotate(k_BANK2, turn)
        y_BASK2 = F.scaled_dot_product_attention(q_BASK2, k_BANK2, v_BANK2, attn_mask=mask_B11N)
        y_BSD: Tensor = self.out(y_BASK2.transpose(1, 2).flatten(2))
        return y_BSD

    def _split(self, x_BSD: Tensor) -> Tensor:
        return torch.unflatten(x_BSD, -1, (self.heads, -1)).transpose(1, 2)


def mlp(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    """Two linear layers around a GELU."""
    return nn.Sequential(nn.Linear(dim_in, dim_hidden), nn.GELU(approximate="tanh"), nn.Linear(dim_hidden, dim_out))


def per_frame(x_BSD: Tensor, scale_BTD: Tensor, shift_BTD: Tensor | None = None) -> Tensor:
    """Affine x * scale + shift, where all P tokens of a frame share its frame's scale and shift; S = T * P."""
    x_BTPD = torch.unflatten(x_BSD, 1, (scale_BTD.shape[1], -1)) * scale_BTD[:, :, None]
    if shift_BTD is not None:
        x_BTPD = x_BTPD + shift_BTD[:, :, None]
    return x_BTPD.flatten(1, 2)


def pad_texts(texts_ND: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Texts of different lengths as `[B, N, D]` zero-padded to the longest, and a mask that hides the padding exactly.

    The mask `[B, 1, 1, N]` is True at real tokens, and None when all texts are equally long.
    """
    lengths = [len(text) for text in texts_ND]
    if min(lengths) < 1:
        raise ValueError(f"text {lengths.index(0)} of the batch has no token; the null caption has at least one")
    text_BND = nn.utils.rnn.pad_sequence(texts_ND, batch_first=True)
    if min(lengths) == max(lengths):
        return text_BND, None
    positions = torch.arange(max(lengths), device=text_BND.device)
    return text_BND, (positions < torch.tensor(lengths, device=text_BND.device)[:, None])[:, None, None]
