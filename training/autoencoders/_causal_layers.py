"""Layers of the autoencoder `causal`: convolutions that never look at later frames, on tensors whose channels come last.

Shape suffixes: B videos, T H W frames, rows and columns, C channels. With channels last in memory, one tensor is an image batch
`[B * T, H, W, C]` for a convolution in space and a picture `[T, H * W]` for one in time, without a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 3
"""Frames that a convolution in time looks at: its own and the two before."""

Past = dict[nn.Module, Tensor]
"""What convolutions in time keep of a stream: each one's last `TAPS - 1` input frames. Empty before the first frame."""


class Norm(nn.Module):
    """Root mean square over channels, at each position by itself, so that nothing of other frames or places comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        scale_BTHW1 = x_BTHWC.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return x_BTHWC * scale_BTHW1.to(x_BTHWC.dtype) * self.gain.to(x_BTHWC.dtype)


class SpaceConv(nn.Conv2d):
    """3x3 over rows and columns of each frame; zeros beyond the border."""

    def __init__(self, channels: int, made: int) -> None:
        super().__init__(channels, made, 3, padding=1)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        y_NHWC: Tensor = super().forward(x_BTHWC.flatten(0, 1).movedim(-1, 1)).movedim(1, -1)
        return y_NHWC.reshape(*x_BTHWC.shape[:4], -1)


class TimeConv(nn.Conv2d):
    """Over a frame and the two before it; zeros before the first, which tell the network where a video begins."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (TAPS, 1))

    def forward(self, x_BTHWC: Tensor, past: Past | None = None) -> Tensor:
        """`past` is read and brought up to date; without one, x is a whole video."""
        before_BTHWC = past.get(self) if past is not None else None
        if before_BTHWC is None:
            before_BTHWC = x_BTHWC.new_zeros((x_BTHWC.shape[0], TAPS - 1, *x_BTHWC.shape[2:]))
        all_BTHWC = torch.cat([before_BTHWC, x_BTHWC], dim=1)
        if past is not None:
            past[self] = all_BTHWC[:, 1 - TAPS :].clone()
        y_BTNC: Tensor = super().forward(all_BTHWC.flatten(2, 3).movedim(-1, 1)).movedim(1, -1)
        return y_BTNC.reshape(*x_BTHWC.shape[:4], -1)


class Block(nn.Module):
    """Residual block: space, then time; 12 weights a pair of channels where a full 3x3x3 convolution has 27. Starts as identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space_norm, self.space = Norm(channels), SpaceConv(channels, channels)
        self.time_norm, self.time = Norm(channels), TimeConv(channels)
        zero(self.time)

    def forward(self, x_BTHWC: Tensor, past: Past | None = None) -> Tensor:
        y_BTHWC: Tensor = self.space(F.silu(self.space_norm(x_BTHWC)))
        y_BTHWC = self.time(F.silu(self.time_norm(y_BTHWC)), past)
        return x_BTHWC + y_BTHWC


class Head(nn.Module):
    """From features to values; starts at 0."""

    def __init__(self, channels: int, made: int) -> None:
        super().__init__()
        self.norm, self.conv = Norm(channels), SpaceConv(channels, made)
        zero(self.conv)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        y_BTHWC: Tensor = self.conv(F.silu(self.norm(x_BTHWC)))
        return y_BTHWC


def zero(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def fold(x_BTHWC: Tensor, time: int, space: int) -> Tensor:
    """`[B, T, H, W, C]` to `[B, T / time, H / space, W / space, time * space * space * C]`."""
    batch, frames, height, width, channels = x_BTHWC.shape
    split = x_BTHWC.reshape(batch, frames // time, time, height // space, space, width // space, space, channels)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


def unfold(x_BTHWC: Tensor, time: int, space: int) -> Tensor:
    """The inverse of `fold`."""
    batch, frames, height, width, _ = x_BTHWC.shape
    split = x_BTHWC.reshape(batch, frames, height, width, time, space, space, -1)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, frames * time, height * space, width * space, -1)
