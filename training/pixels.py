"""Pixels as autoencoders take them, in [-1, 1], and as files hold them, in 256 levels."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_RANGE = 127.5
"""Levels from the middle to either end."""


def from_levels(levels: Tensor) -> Tensor:
    """uint8 of any shape to fp32 in [-1, 1]."""
    return levels.to(torch.float32).div_(HALF_RANGE).sub_(1)


def to_levels(pixels: Tensor) -> Tensor:
    """Floats of any shape to the nearest uint8; what is beyond [-1, 1] goes to its end."""
    return pixels.to(torch.float32).clamp(-1, 1).add_(1).mul_(HALF_RANGE).round_().to(torch.uint8)
