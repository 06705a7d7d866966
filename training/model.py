"""The contract of a model: what a denoising network takes and returns, and how it is chosen by name."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cluster.plugins import Plugin

FOLDER = "training.models"

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns, N text tokens, E text width.


@dataclass(frozen=True)
class Condition:
    """What a batch is denoised under. Every tensor lies on the model's device."""

    texts: Sequence[Tensor]
    """B unpadded text embeddings `[N, E]`, each of its own length N >= 1."""
    time_BT: Tensor
    """Noise level of every latent frame, 0 (clean) to 1 (noise); frames of one sample may differ."""
    given_BT: Tensor
    """1.0 where a latent frame is given to the model, 0.0 where the model generates it."""
    seconds_BT: Tensor
    """Presentation time of every latent frame in seconds, see `training.conditioning.latent_seconds`."""
    fps_B: Tensor
    """Frames a second of the pixels."""
    size_B2: Tensor
    """Width and height in pixels."""


class VideoModel(nn.Module, abc.ABC):
    """Noisy latents `[B, C, T, H, W]` of any T, H, W and their condition to a prediction of the same shape."""

    @abc.abstractmethod
    def forward(self, x_BCTHW: Tensor, condition: Condition) -> Tensor: ...


class ModelSettings(Plugin):
    """Settings of a model, by `name`. One subclass a file in `training/models/`."""

    @abc.abstractmethod
    def build(self, channels: int, text_dim: int) -> VideoModel:
        """A freshly initialised model for latents of that many channels and text tokens of that width."""

    @abc.abstractmethod
    def tokens(self, frames: int, height: int, width: int) -> int:
        """How many tokens S the model makes of a latent of that many frames, rows and columns; noise schedules depend on it."""
