"""Parts of diffusion transformers: sinusoidal features, 3-D rotary positions, attention, and modulation by a condition."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models._attention import Attend

# Shape suffixes: B samples, T H W token frames, rows and columns of a sample; S tokens, F token frames and N text tokens of a
# whole pack, whose samples stand one after the other; P = H * W tokens of a frame, D model width, A heads, K rotary pairs of a
# head (half its width).

EPSILON = 1e-6
SHORTEST_S, LONGEST_S = 1.0, 128.0
"""Rotary wavelengths of time: at 8 frames a second latent frames lie 0.5 s apart, half the shortest; a minute fits the longest."""
SHORTEST_CELLS, LONGEST_CELLS = 8.0, 512.0
"""Rotary wavelengths of space in latent cells: 4 tokens of 2 cells, to the 4,096 pixels of the widest pictures at 8 pixels a cell."""


def sinusoids(value: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """`[..., dim]` cosines and sines of values at dim / 2 geometric frequencies from 1 to 1 / longest radians (Vaswani et al. 2017)."""
    frequency = torch.exp(
        -math.log(longest) / (dim // 2) * torch.arange(dim // 2, dtype=torch.float32, device=value.device)
    )
    angle = value.to(torch.float32)[..., None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Rotation(NamedTuple):
    """Cosines and sines `[S, 1, K]` by which queries and keys are turned, shared by all heads."""

    cos: Tensor
    sin: Tensor


def rotary_split(n_pairs: int) -> tuple[int, int, int]:
    """How many of a head's rotary pairs turn with time, row and column: a quarter or a little more, and the rest halved."""
    space = n_pairs * 3 // 8
    return n_pairs - 2 * space, space, space


def rotation(seconds_BT: Tensor, row_H: Tensor, column_W: Tensor, n_pairs: int) -> Rotation:
    """3-D rotary positions (Su et al. 2021, per axis) of B samples of one shape: time in seconds, rows and columns in latent cells.

    An inner product of a turned query and key depends on the differences of their positions alone.
    """
    n_time, n_row, n_column = rotary_split(n_pairs)
    time_BTK = seconds_BT.to(torch.float32)[..., None] * _frequencies(n_time, SHORTEST_S, LONGEST_S, seconds_BT.device)
    row_HK = row_H.to(torch.float32)[:, None] * _frequencies(n_row, SHORTEST_CELLS, LONGEST_CELLS, row_H.device)
    column_WK = column_W.to(torch.float32)[:, None] * _frequencies(
        n_column, SHORTEST_CELLS, LONGEST_CELLS, column_W.device
    )
    size = (*seconds_BT.shape, len(row_H), len(column_W))
    parts = (time_BTK[:, :, None, None], row_HK[None, None, :, None], column_WK[None, None, None])
    angle_BTHWK = torch.cat([part.expand(*size, part.shape[-1]) for part in parts], dim=-1)
    angle_S1K = angle_BTHWK.flatten(0, 3)[:, None]
    return Rotation(angle_S1K.cos(), angle_S1K.sin())


def _frequencies(count: int, shortest: float, longest: float, device: torch.device) -> Tensor:
    wavelength = shortest * (longest / shortest) ** (
        torch.arange(count, dtype=torch.float32, device=device) / max(count - 1, 1)
    )
    return 2 * math.pi / wavelength


def rotate(x_SAK2: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (k, k + K) of the last axis of `[S, A, 2K]` by its angle; computed in fp32, returned as given."""
    left, right = x_SAK2.to(torch.float32).chunk(2, dim=-1)
    return torch.cat((left * by.cos - right * by.sin, right * by.cos + left * by.sin), dim=-1).to(x_SAK2.dtype)


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

    def forward(self, x_SD: Tensor, to_ND: Tensor, attend: Attend, turn: Rotation | None = None) -> Tensor:
        """Queries of `x` attend to keys and values of `to`, each sample to its own; `turn` rotates both."""
        q_SAK2 = self.query_norm(self._split(self.query(x_SD)))
        key, value = self.key_value(to_ND).chunk(2, dim=-1)
        k_NAK2, v_NAK2 = self.key_norm(self._split(key)), self._split(value)
        if turn is not None:
            q_SAK2, k_NAK2 = rotate(q_SAK2, turn), rotate(k_NAK2, turn)
        y_SD: Tensor = self.out(attend(q_SAK2, k_NAK2, v_NAK2).flatten(1))
        return y_SD

    def _split(self, x_SD: Tensor) -> Tensor:
        return torch.unflatten(x_SD, -1, (self.heads, -1))


def mlp(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    """Two linear layers around a GELU."""
    return nn.Sequential(nn.Linear(dim_in, dim_hidden), nn.GELU(approximate="tanh"), nn.Linear(dim_hidden, dim_out))


def per_frame(x_SD: Tensor, frame_S: Tensor | None, scale_FD: Tensor, shift_FD: Tensor | None = None) -> Tensor:
    """Affine x * scale + shift, where all tokens of a frame share their frame's scale and shift.

    `frame_S` is the frame of each token, or None where every frame has as many tokens, in order: then nothing is copied.
    """
    if frame_S is None:
        x_FPD = torch.unflatten(x_SD, 0, (len(scale_FD), -1)) * scale_FD[:, None]
        return (x_FPD if shift_FD is None else x_FPD + shift_FD[:, None]).flatten(0, 1)
    # F.embedding rather than indexing: its backward sums in a fixed order on a GPU too.
    x_SD = x_SD * F.embedding(frame_S, scale_FD)
    return x_SD if shift_FD is None else x_SD + F.embedding(frame_S, shift_FD)
