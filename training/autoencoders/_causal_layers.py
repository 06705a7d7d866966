"""Layers of the autoencoder `causal`: convolutions that never read later frames, on tensors with channels last.

Shape suffixes: B videos, T H W frames, rows and columns, C channels. With channels last in memory, one tensor is,
without a copy, a batch of images `[B * T, H, W, C]` for a convolution in space, and an image `[T, H * W]` for one in
time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL_FRAMES = 3
"""Frames that a convolution in time reads: a frame and the two before it."""

FrameCache = dict[nn.Module, Tensor]
"""The last `KERNEL_FRAMES - 1` input frames of each convolution in time, kept between the pieces of a video; empty
before the first piece."""

# The attributes of modules are the names of weights in files: to rename one makes all files unreadable.


class Norm(nn.Module):
    """Normalisation by the root mean square over channels, at each position of each frame alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        scale_BTHW1 = x_BTHWC.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return x_BTHWC * scale_BTHW1.to(x_BTHWC.dtype) * self.gain.to(x_BTHWC.dtype)


class SpaceConv(nn.Conv2d):
    """A 3x3 convolution over rows and columns of each frame, with zeros beyond the border."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        y_NHWC: Tensor = super().forward(x_BTHWC.flatten(0, 1).movedim(-1, 1)).movedim(1, -1)
        return y_NHWC.reshape(*x_BTHWC.shape[:4], -1)


class TimeConv(nn.Conv2d):
    """A convolution over a frame and the two before it.

    Before the first frame are zeros, by which the network can tell where a video begins.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (KERNEL_FRAMES, 1))

    def forward(self, x_BTHWC: Tensor, cache: FrameCache | None = None) -> Tensor:
        """Convolve a whole video, or with a cache the next piece of one; the cache is updated."""
        before_BTHWC = cache.get(self) if cache is not None else None
        if before_BTHWC is None:
            before_BTHWC = x_BTHWC.new_zeros((x_BTHWC.shape[0], KERNEL_FRAMES - 1, *x_BTHWC.shape[2:]))
        all_BTHWC = torch.cat([before_BTHWC, x_BTHWC], dim=1)
        if cache is not None:
            cache[self] = all_BTHWC[:, 1 - KERNEL_FRAMES :].clone()
        y_BTNC: Tensor = super().forward(all_BTHWC.flatten(2, 3).movedim(-1, 1)).movedim(1, -1)
        return y_BTNC.reshape(*x_BTHWC.shape[:4], -1)


class Block(nn.Module):
    """A residual block: a convolution in space, then one in time. Its initial weights make it the identity.

    It has 12 weights per pair of channels, where a full 3x3x3 convolution has 27.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space_norm, self.space = Norm(channels), SpaceConv(channels, channels)
        self.time_norm, self.time = Norm(channels), TimeConv(channels)
        initialise_with_zeros(self.time)

    def forward(self, x_BTHWC: Tensor, cache: FrameCache | None = None) -> Tensor:
        y_BTHWC: Tensor = self.space(F.silu(self.space_norm(x_BTHWC)))
        y_BTHWC = self.time(F.silu(self.time_norm(y_BTHWC)), cache)
        return x_BTHWC + y_BTHWC


class Head(nn.Module):
    """The last layer, from features to values. Its initial weights make all values 0."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm, self.conv = Norm(in_channels), SpaceConv(in_channels, out_channels)
        initialise_with_zeros(self.conv)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        y_BTHWC: Tensor = self.conv(F.silu(self.norm(x_BTHWC)))
        return y_BTHWC


def initialise_with_zeros(layer: nn.Conv2d) -> None:
    """Set all weights of a convolution to 0."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def blocks_to_channels(x_BTHWC: Tensor, time: int, space: int) -> Tensor:
    """Turn `[B, T, H, W, C]` into `[B, T / time, H / space, W / space, time * space * space * C]`."""
    batch, frames, height, width, channels = x_BTHWC.shape
    split = x_BTHWC.reshape(batch, frames // time, time, height // space, space, width // space, space, channels)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


def channels_to_blocks(x_BTHWC: Tensor, time: int, space: int) -> Tensor:
    """Invert `blocks_to_channels`."""
    batch, frames, height, width, _ = x_BTHWC.shape
    split = x_BTHWC.reshape(batch, frames, height, width, time, space, space, -1)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, frames * time, height * space, width * space, -1)
