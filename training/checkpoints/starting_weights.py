"""The weights that a new run starts from, by its settings."""

from __future__ import annotations

from training.checkpoints.initial_weights import InitialWeights, find_initial_weights
from training.checkpoints.published_weights import published_weights
from training.models.diffusers import Diffusers
from training.settings import TrainSettings


def weights_to_start_from(settings: TrainSettings) -> InitialWeights | None:
    """Return the weights of `init`, or else those of a published model; None for random ones.

    Raises `ValueError` with the fix if they cannot be used.
    """
    if settings.init is not None:
        return find_initial_weights(settings.init)
    return published_weights(settings.model) if isinstance(settings.model, Diffusers) else None
