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
    if settings.init is None:
        return published_weights(settings.model) if isinstance(settings.model, Diffusers) else None
    weights = find_initial_weights(settings.init)
    own, other = (getattr(model, "expert", None) for model in (settings.model, weights.card and weights.card.model))
    if None not in (own, other) and own != other:
        raise ValueError(
            f"{weights.uri}: is expert {other}, and model.expert is {own}; set model.expert: {other}, or init to an "
            "export of that expert"
        )
    return weights
