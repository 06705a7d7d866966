"""Layers of diffusion transformers: sinusoidal features, 3-D rotary embedding (rope), attention, and modulation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
    """The rotation of queries and keys by rope, the same for all heads: x becomes cos * x + sin * (x with its halves
    swapped).
    """

    cos: Tensor
    """Cosines `[S, 1, 2K]` of the angles of each element of a head; pairs are (k, k + K)."""
    sin: Tensor
    """Sines `[S, 1, 2K]`, negative for the first half."""


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
    cos, sin = angle_S1K.cos(), angle_S1K.sin()
    return Rope(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def _rope_frequencies(count: int, min_wavelength: float, max_wavelength: float, device: torch.device) -> Tensor:
    """Return `[count]`: radians per unit, with wavelengths in a geometric progression."""
    wavelength = min_wavelength * (max_wavelength / min_wavelength) ** (
        torch.arange(count, dtype=torch.float32, device=device) / max(count - 1, 1)
    )
    return 2 * math.pi / wavelength


def apply_rope(x_SAK2: Tensor, rope: Rope) -> Tensor:
    """Rotate each pair (k, k + K) of the last axis of `[S, A, 2K]` by its angle, in fp32; return the type of `x`."""
    rotated: Tensor = _Rotation.apply(x_SAK2, *rope)  # type: ignore[no-untyped-call]
    return rotated


class _Rotation(torch.autograd.Function):
    """A rotation of pairs, whose backward pass is the rotation by the opposite angles; it keeps no activation."""

    @staticmethod
    def forward(ctx: Any, x_SAK2: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_SAK2, cos, sin, direction=1)

    @staticmethod
    def backward(ctx: Any, grad_SAK2: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotate(grad_SAK2, cos, sin, direction=-1), None, None


def _rotate(x_SAK2: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    left, right = x_SAK2.chunk(2, dim=-1)
    # Cosines and sines are fp32, so the products and their sum are too.
    rotated = (x_SAK2 * cos).addcmul_(torch.cat((right, left), dim=-1), sin, value=direction)
    return rotated.to(x_SAK2.dtype)


class Attention(nn.Module):
    """Multi-head self-attention or cross-attention, with RMS-normalised queries and keys (Dehghani et al. 2023)."""

    _z3_leaf = True
    """Tells ZeRO-3 to gather all weights of the layer before its forward pass, which uses some of them outside the
    layers that hold them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.query_norm = nn.RMSNorm(dim // heads, eps=NORM_EPS)
        self.key_norm = nn.RMSNorm(dim // heads, eps=NORM_EPS)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_SD: Tensor, context_ND: Tensor | None, kernel: AttentionKernel, rope: Rope | None = None
    ) -> Tensor:
        """Return `[S, D]`: queries of `x` attend to keys and values of `context`, or of `x` if it is None.

        `rope` rotates queries and keys.
        """
        query, key, value = (self._split_heads(y) for y in self._project(x_SD, context_ND))
        q_SAK2, k_NAK2 = self.query_norm(query), self.key_norm(key)
        if rope is not None:
            q_SAK2, k_NAK2 = apply_rope(q_SAK2, rope), apply_rope(k_NAK2, rope)
        y_SD: Tensor = self.out(kernel(q_SAK2, k_NAK2, value).flatten(1))
        return y_SD

    def _project(self, x_SD: Tensor, context_ND: Tensor | None) -> tuple[Tensor, ...]:
        """Return queries `[S, D]`, and keys and values `[N, D]`."""
        if context_ND is not None or not self._is_plain():
            return self.query(x_SD), *self.key_value(x_SD if context_ND is None else context_ND).chunk(2, dim=-1)
        # One product reads `x` once. The weights are stored apart, as those of cross-attention are and as Muon, which
        # makes each matrix orthogonal, needs them. The copy is 3 D rows, beside S rows of each activation.
        weight = torch.cat((self.query.weight, self.key_value.weight))
        bias = torch.cat((self.query.bias, self.key_value.bias))
        return F.linear(x_SD, weight, bias).chunk(3, dim=-1)

    def _is_plain(self) -> bool:
        """Return whether the weights alone are what the layers compute: those with an adapter compute more."""
        return isinstance(self.query, nn.Linear) and isinstance(self.key_value, nn.Linear)

    def _split_heads(self, x_SD: Tensor) -> Tensor:
        return torch.unflatten(x_SD, -1, (self.heads, -1))


def mlp(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    """Return two linear layers around a GELU."""
    return nn.Sequential(nn.Linear(dim_in, dim_hidden), nn.GELU(approximate="tanh"), nn.Linear(dim_hidden, dim_out))


class Frames(NamedTuple):
    """The frame that each token of a packed sequence belongs to."""

    index_S: Tensor
    """Index of each token's frame."""
    members_FS: Tensor | None
    """1 where a token belongs to a frame, and 0 elsewhere; None in fp32 on a CPU."""

    @classmethod
    def of(cls, index_S: Tensor, n_frames: int, dtype: torch.dtype) -> Frames:
        """Return the frames of tokens with these indices of frames, for activations of this type."""
        if index_S.device.type == "cpu" and dtype == torch.float32:
            return cls(index_S, None)
        frame_F1 = torch.arange(n_frames, device=index_S.device)[:, None]
        return cls(index_S, (index_S == frame_F1).to(dtype))

    def expand(self, x_FD: Tensor) -> Tensor:
        """Return each token's row `[S, D]` of a tensor with a row per frame."""
        expanded_SD: Tensor = _ExpandFrames.apply(x_FD, *self)  # type: ignore[no-untyped-call]
        return expanded_SD


class _ExpandFrames(torch.autograd.Function):
    """A gather of rows, whose backward pass sums each frame's tokens in a fixed order.

    That of indexing uses atomic additions on a GPU, and that of `F.embedding` sorts the indices. A product with the
    members of each frame sums in fp32, and takes about as long as reading the gradient once. On a CPU, where it takes
    3 to 19 times as long as adding rows (20 to 250 frames, one thread), rows are added.
    """

    @staticmethod
    def forward(ctx: Any, x_FD: Tensor, index_S: Tensor, members_FS: Tensor | None) -> Tensor:
        ctx.n_frames = len(x_FD)
        ctx.save_for_backward(index_S, members_FS)
        return x_FD.index_select(0, index_S)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        index_S, members_FS = ctx.saved_tensors
        if members_FS is not None:
            return members_FS @ grad_SD, None, None
        return grad_SD.new_zeros(ctx.n_frames, grad_SD.shape[1]).index_add_(0, index_S, grad_SD), None, None


def modulate(x_SD: Tensor, shift_FD: Tensor, scale_FD: Tensor, frames: Frames | None) -> Tensor:
    """Return x * (1 + scale) + shift, with the scale and shift of each token's frame; see `add_gated` for `frames`."""
    if frames is None:
        x_FPD = torch.unflatten(x_SD, 0, (len(scale_FD), -1))
        return torch.addcmul(shift_FD[:, None], x_FPD, 1 + scale_FD[:, None]).flatten(0, 1)
    return torch.addcmul(frames.expand(shift_FD), x_SD, frames.expand(1 + scale_FD))


def add_gated(x_SD: Tensor, y_SD: Tensor, gate_FD: Tensor, frames: Frames | None) -> Tensor:
    """Return x + y * gate, with the gate of each token's frame.

    `frames` is None if all frames have equally many tokens, in frame order: then no gate is copied.
    """
    if frames is None:
        x_FPD, y_FPD = (torch.unflatten(z_SD, 0, (len(gate_FD), -1)) for z_SD in (x_SD, y_SD))
        return torch.addcmul(x_FPD, y_FPD, gate_FD[:, None]).flatten(0, 1)
    return torch.addcmul(x_SD, y_SD, frames.expand(gate_FD))
