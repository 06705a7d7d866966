"""Which latent frames are given to the model, which it generates, and when each is shown."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cluster.config import Settings

# Shape suffixes: B samples, T latent frames.


class ConditioningRates(Settings):
    """Shares of training samples by the frames they are given; they sum to 1."""

    none: float = Field(0.75, ge=0, le=1, description="Nothing is given: text to video.")
    first: float = Field(0.25, ge=0, le=1, description="The first frame is given: image to video. An image has no other frame, so nothing is given.")

    @model_validator(mode="after")
    def _sum(self) -> ConditioningRates:
        total = self.none + self.first
        if abs(total - 1) > 1e-6:
            raise ValueError(f"none {self.none} + first {self.first} is {total:g}; the shares must sum to 1")
        return self

    def draw(self, generator: torch.Generator, n_frames: int) -> Tensor:
        """`[n_frames]` float mask of one sample, 1.0 where a latent frame is given; at least one frame is generated."""
        first = torch.rand((), generator=generator, dtype=torch.float64).item() < self.first
        return first_frames(1 if first and n_frames > 1 else 0, n_frames)


def first_frames(n_given: int, n_frames: int) -> Tensor:
    """`[n_frames]` mask with the first `n_given` latent frames given."""
    return (torch.arange(n_frames) < n_given).to(torch.float32)


def frame_times(time_B: Tensor, given_BT: Tensor, given_time: float = 0.0) -> Tensor:
    """Noise level of every latent frame `[B, T]`: the sample's own where a frame is generated, `given_time` where it is given."""
    return torch.where(given_BT > 0, torch.full_like(given_BT, given_time), time_B[:, None].expand_as(given_BT))


def latent_seconds(n_frames: int, fps_B: Tensor, time_factor: int) -> Tensor:
    """Presentation time `[B, T]` of latent frames in seconds: the mean of the times of the pixel frames each covers.

    The first latent frame is pixel frame 0 alone; latent frame k >= 1 is pixel frames (k - 1) r + 1 to k r, whose mean
    is ((2k - 1) r + 1) / 2, for r = `time_factor`.
    """
    k = torch.arange(n_frames, dtype=torch.float32, device=fps_B.device)
    centre_T = torch.where(k > 0, ((2 * k - 1) * time_factor + 1) / 2, torch.zeros_like(k))
    return centre_T / fps_B[:, None]
