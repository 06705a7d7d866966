"""The contract of a model's settings: how a denoising network is chosen by name, built, and what it costs."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar

from cluster.plugins import Plugin

if TYPE_CHECKING:
    # Settings are read by every command, and importing torch takes 2 s.
    from training.network import VideoModel

FOLDER = "training.models"


class ModelSettings(Plugin):
    """Settings of a model, by `name`. One subclass a file in `training/models/`."""

    free_to_change: ClassVar[frozenset[str]] = frozenset()
    """Settings that say how the model is computed and not what: a run goes on with others, and its losses differ by rounding at most."""

    @abc.abstractmethod
    def build(self, channels: int, text_dim: int) -> VideoModel:
        """A freshly initialised model for latents of that many channels and text tokens of that width.

        Under `torch.device("meta")` it has no memory yet; see `VideoModel.initialise`.
        """

    @abc.abstractmethod
    def tokens(self, frames: int, height: int, width: int) -> int:
        """How many tokens S the model makes of a latent of that many frames, rows and columns; noise schedules depend on it."""

    @abc.abstractmethod
    def flops(self, tokens: int, text_tokens: int) -> int:
        """Floating-point operations of one sample's way forward, a multiplication and an addition counting as two."""

    def check_context(self, parallel: int) -> None:
        """Raise `ValueError` where so many workers cannot share a sample's tokens; see `VideoModel.share_tokens`."""
        if parallel > 1:
            raise ValueError(
                f"context_parallel {parallel}: model {self.name} cannot share a sample's tokens among workers; set context_parallel: 1"
            )

    @property
    def recomputed(self) -> float:
        """Share of `flops` that training computes a second time on the way back, in the place of activations it did not keep."""
        return 0.0
