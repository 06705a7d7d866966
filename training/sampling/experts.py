"""Models of two experts: sampling passes from the one of high noise levels to that of low ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.config import located_messages, validate
from training.adapters.source import AdapterSource
from training.checkpoints.adapter_export import AdapterFile, StoredAdapter, read_model
from training.checkpoints.export import model_from_card
from training.checkpoints.initial_weights import InitialWeights
from training.checkpoints.model_card import ModelCard, read_card
from training.checkpoints.published_weights import published_weights
from training.models.diffusers import SUBFOLDERS, Diffusers, Expert
from training.network import Condition, VideoModel, parameter_shapes
from training.sampling.settings import is_high_noise

SAME_PARTS = ("autoencoder_identity", "text_encoder_identity", "channels", "text_dim")
"""Fields of their cards in which two experts agree."""


class TwoExperts(VideoModel):
    """Two models, of which the noise level decides which one predicts."""

    def __init__(self, by_expert: dict[Expert, VideoModel], boundary: float) -> None:
        super().__init__()
        self._high, self._low = by_expert["high_noise"], by_expert["low_noise"]
        self._boundary = boundary

    def in_folder(self, subfolder: str) -> VideoModel:
        """Return the expert whose weights a pipeline has in this folder."""
        return self._high if subfolder == SUBFOLDERS["high_noise"] else self._low

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        """Return the prediction of one expert; all samples of a call have noise levels on the same side."""
        time = max(float(time_T.max()) for time_T in condition.times)
        predict = self._high if is_high_noise(time, self._boundary) else self._low
        predictions: list[Tensor] = predict(latents, condition)
        return predictions

    def weight_initialiser(self) -> Callable[[nn.Parameter, str], None]:
        raise NotImplementedError("experts are trained one at a time")

    def compile_for_sampling(self) -> None:
        self._high.compile_for_sampling()
        self._low.compile_for_sampling()


def with_other_expert(card: ModelCard, model: VideoModel, other_uri: str | None) -> VideoModel:
    """Return an expert together with the other one: that of an export, or else the published one.

    A model that is no expert is returned as it is. Raises `ValueError` for an export that does not belong to this one,
    and if the published expert is not there.
    """
    check_other_expert(card, other_uri)
    settings = card.model
    if not isinstance(settings, Diffusers) or settings.expert is None or settings.boundary is None:
        return model
    other = _published_expert(card) if other_uri is None else read_model(other_uri)[1]
    return TwoExperts({settings.expert: model, settings.other_expert: other}, settings.boundary)


def merge_adapters(
    card: ModelCard, model: VideoModel, adapters: Mapping[AdapterSource, StoredAdapter | AdapterFile]
) -> None:
    """Add the changes of adapters to the weights of a card's model, in place.

    Of two experts, they change those that a file names in its keys, and otherwise the one of the card.
    """
    own = card.model
    for source, adapter in adapters.items():
        changed = [model]
        if isinstance(model, TwoExperts) and isinstance(own, Diffusers):
            changed = [model.in_folder(subfolder) for subfolder in adapter.subfolders or {own.subfolder}]
        for one in changed:
            adapter.merge_into(one, source.weight)


def check_other_expert(card: ModelCard, other_uri: str | None) -> None:
    """Raise `ValueError` if an export is not of the other expert of a card's model, or without one if the published
    expert is not there.
    """
    own = card.model
    if other_uri is None:
        if own.boundary is not None:
            _published_weights(card)
        return
    assert isinstance(own, Diffusers), "`check_guidance` refuses it for other models"
    try:
        other = read_card(other_uri)
    except ValueError as error:
        raise ValueError(f"other_expert {error}") from error
    found = other.model.expert if isinstance(other.model, Diffusers) else None
    if found != own.other_expert:
        raise ValueError(
            f"other_expert {other_uri}: is {f'expert {found}' if found else 'no expert'}, and this model needs "
            f"{own.other_expert}; give the export of a run with model.expert: {own.other_expert}"
        )
    differing = [part for part in SAME_PARTS if getattr(card, part) != getattr(other, part)]
    if differing:
        part = differing[0]
        raise ValueError(
            f"other_expert {other_uri}: has {part} {getattr(other, part)}, and this model {getattr(card, part)}; give "
            "the export of a run on the same latents and texts"
        )
    assert isinstance(other.model, Diffusers), "it is an expert"
    for what, ours, theirs in (
        ("boundary_ratio", own.boundary, other.model.boundary),
        ("channels of an image", own.image_channels, other.model.image_channels),
    ):
        if ours != theirs:
            raise ValueError(
                f"other_expert {other_uri}: has {what} {theirs}, and this model {ours}; give the export of a run on "
                "the same published model"
            )


def _published_expert(card: ModelCard) -> VideoModel:
    """Return the expert that was not trained. Raises `ValueError` if its weights are not there."""
    other, weights = _published_weights(card)
    other_card = card.model_copy(update={"model": other})
    with torch.device("meta"):
        shapes = parameter_shapes(other.build(card.channels, card.text_dim))
    return model_from_card(other_card, weights.whole(shapes))


def _published_weights(card: ModelCard) -> tuple[Diffusers, InitialWeights]:
    """Return the settings of the expert that was not trained, and its weights, of which none are read."""
    settings = card.model
    assert isinstance(settings, Diffusers), "others have no boundary"
    values = {"path": settings.path, "revision": settings.revision, "expert": settings.other_expert}
    try:
        other = validate(Diffusers, values)
        return other, published_weights(other)
    except ValueError as error:
        message = next(located_messages(Diffusers, error))[1] if isinstance(error, ValidationError) else error
        raise ValueError(
            f"sampling also needs expert {settings.other_expert}: {message}; or give the export of one by other_expert"
        ) from error
