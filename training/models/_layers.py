"""Layers of diffusion transformers: sinusoidal features, 3-D rotary embedding (rope), attention, and modulation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models._attention import AttentionKernel

# Shape suffixes: B samples, T H W token frames, rows and columns of a sample; S tokens, F token frames and N text
# tokens of a whole pack, whose samples lie one after the other; P = H * W tokens of a frame, D model width, A heads, K
# rotary pairs of a head (half its width).

NORM_EPS = 1e-6
"""Added to the mean square or variance under the root of every norm."""
MIN_WAVELENGTH_S, MAX_WAVELENGTH_S = 1.0, 128.0
"""Shortest and longest wavelength of rope over time. At 8 frames/s latent frames lie 0.5 s apart, half the shortest; a
minute fits in the longest."""
MIN_WAVELENGTH_CELLS, MAX_WAVELENGTH_CELLS = 8.0, 512.0
"""Shortest and longest wavelength of rope over space, in latent cells: from 4 tokens of 2 cells to the 4,096 pixels of
the widest videos at 8 pixels per cell."""


def sinusoidal_features(value: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Return cosines and sines `[..., dim]` of values (Vaswani et al. 2017).

    The dim / 2 frequencies fall geometrically from 1 to nearly 1 / max_period radians per unit.
    """
    frequency = torch.exp(
        -math.log(max_period) / (dim // 2) * torch.arange(dim // 2, dtype=torch.float32, device=value.device)
    )
    angle = value.to(torch.float32)[..., None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class Rope(NamedTuple):
    """Cosines and sines `[S, 1, K]` of the angles by which rope rotates queries and keys, the same for all heads."""

    cos: Tensor
    sin: Tensor


def rope_pairs(n_pairs: int) -> tuple[int, int, int]:
    """Split a head's rotary pairs among time, rows and columns.

    Time gets a quarter of them, or slightly more; rows and columns get half of the rest each.
    """
    per_side = n_pairs * 3 // 8
    return n_pairs - 2 * per_side, per_side, per_side


def rope_3d(seconds_BT: Tensor, row_H: Tensor, column_W: Tensor, n_pairs: int) -> Rope:
    """Return the rope of B samples of one shape (Su et al. 2021, per axis), from times in seconds, and rows and columns
    in latent cells.

    The inner product of a rotated query and a rotated key depends on the difference of their positions only.
    """
    n_time, n_row, n_column = rope_pairs(n_pairs)
    device = seconds_BT.device
    time_K = _rope_frequencies(n_time, MIN_WAVELENGTH_S, MAX_WAVELENGTH_S, device)
    row_K = _rope_frequencies(n_row, MIN_WAVELENGTH_CELLS, MAX_WAVELENGTH_CELLS, device)
    column_K = _rope_frequencies(n_column, MIN_WAVELENGTH_CELLS, MAX_WAVELENGTH_CELLS, device)
    time_BTK = seconds_BT.to(torch.float32)[..., None] * time_K
    row_HK = row_H.to(torch.float32)[:, None] * row_K
    column_WK = column_W.to(torch.float32)[:, None] * column_K
    shape_BTHW = (*seconds_BT.shape, len(row_H), len(column_W))
    parts = (time_BTK[:, :, None, None], row_HK[None, None, :, None], column_WK[None, None, None])
    angle_BTHWK = torch.cat([part.expand(*shape_BTHW, part.shape[-1]) for part in parts], dim=-1)
    angle_S1K = angle_BTHWK.flatten(0, 3)[:, None]
    return Rope(angle_S1K.cos(), angle_S1K.sin())


def _rope_frequencies(count: int, min_wavelength: float, max_wavelength: float, device: torch.device) -> Tensor:
    """Return `[count]`: radians per unit, with wavelengths in a geometric progression."""
    wavelength = min_wavelength * (max_wavelength / min_wavelength) ** (
        torch.arange(count, dtype=torch.float32, device=device) / max(count - 1, 1)
    )
    return 2 * math.pi / wavelength


def apply_rope(x_SAK2: Tensor, rope: Rope) -> Tensor:
    """Rotate each pair (k, k + K) of the last axis of `[S, A, 2K]` by its angle, in fp32; return the type of `x`."""
    left, right = x_SAK2.to(torch.float32).chunk(2, dim=-1)
    rotated = torch.cat((left * rope.cos - right * rope.sin, right * rope.cos + left * rope.sin), dim=-1)
    return rotated.to(x_SAK2.dtype)


class Attention(nn.Module):
    """Multi-head self-attention or cross-attention, with RMS-normalised queries and keys (Dehghani et al. 2023)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.query_norm = nn.RMSNorm(dim // heads, eps=NORM_EPS)
        self.key_norm = nn.RMSNorm(dim // heads, eps=NORM_EPS)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_SD: Tensor, context_ND: Tensor, kernel: AttentionKernel, rope: Rope | None = None) -> Tensor:
        """Return `[S, D]`: queries of `x` attend to keys and values of `context`; `rope` rotates queries and keys."""
        q_SAK2 = self.query_norm(self._split_heads(self.query(x_SD)))
        key, value = self.key_value(context_ND).chunk(2, dim=-1)
        k_NAK2, v_NAK2 = self.key_norm(self._split_heads(key)), self._split_heads(value)
        if rope is not None:
            q_SAK2, k_NAK2 = apply_rope(q_SAK2, rope), apply_rope(k_NAK2, rope)
        y_SD: Tensor = self.out(kernel(q_SAK2, k_NAK2, v_NAK2).flatten(1))
        return y_SD

    def _split_heads(self, x_SD: Tensor) -> Tensor:
        return torch.unflatten(x_SD, -1, (self.heads, -1))


def mlp(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    """Return two linear layers around a GELU."""
    return nn.Sequential(nn.Linear(dim_in, dim_hidden), nn.GELU(approximate="tanh"), nn.Linear(dim_hidden, dim_out))


def modulate(x_SD: Tensor, shift_FD: Tensor, scale_FD: Tensor, frame_S: Tensor | None) -> Tensor:
    """Return x * (1 + scale) + shift, with the scale and shift of each token's frame; see `gate` for `frame_S`."""
    return _affine(x_SD, frame_S, 1 + scale_FD, shift_FD)


def gate(x_SD: Tensor, gate_FD: Tensor, frame_S: Tensor | None) -> Tensor:
    """Return x * gate, with the gate of each token's frame.

    `frame_S` is the index of each token's frame, or None if all frames have equally many tokens, in frame order: then
    nothing is copied.
    """
    return _affine(x_SD, frame_S, gate_FD)


def _affine(x_SD: Tensor, frame_S: Tensor | None, scale_FD: Tensor, shift_FD: Tensor | None = None) -> Tensor:
    if frame_S is None:
        x_FPD = torch.unflatten(x_SD, 0, (len(scale_FD), -1)) * scale_FD[:, None]
        return (x_FPD if shift_FD is None else x_FPD + shift_FD[:, None]).flatten(0, 1)
    # F.embedding instead of indexing: its backward pass sums in a fixed order on GPUs too.
    x_SD = x_SD * F.embedding(frame_S, scale_FD)
    return x_SD if shift_FD is None else x_SD + F.embedding(frame_S, shift_FD)
