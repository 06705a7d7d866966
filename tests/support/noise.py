"""Random videos and latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_noise(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Return a tensor of numbers uniform in [-1, 1), the range of pixels."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1
