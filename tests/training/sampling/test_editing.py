"""Edits: SDEdit begins with the noised video, and FlowEdit changes only what the two prompts differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training.sampling.test_continuation import ramp, request
from tests.training.sampling.test_generation import AUTOENCODER, MODEL_CARD, RecordingModel
from training.network import Condition
from training.sampling.coding import encode_video
from training.sampling.editing import Edit, edit


class TextModel(RecordingModel):
    """A model whose velocity is the mean of the text."""

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        super().forward(latents, condition)
        return [torch.ones_like(latent) * text.mean() for latent, text in zip(latents, condition.texts, strict=True)]


def test_sdedit_begins_with_the_noised_video() -> None:
    model = RecordingModel()
    job = request(model)
    job = replace(job, settings=job.settings.model_copy(update={"steps": 4}))
    found = edit(job, ramp(30), Edit(strength=0.5))
    time = MODEL_CARD.objective.schedule(4, MODEL_CARD.model.tokens(3, 2, 4))[2]
    assert len(model.inputs) == 2, "half of the steps are taken"
    clean_CTHW = encode_video(AUTOENCODER, ramp(30)[:9], "cpu")
    noise_CTHW = (model.inputs[0][0][0] - (1 - time) * clean_CTHW) / time
    assert float(noise_CTHW.std()) == pytest.approx(1, abs=0.1)
    assert model.inputs[0][1].times[0].tolist() == pytest.approx([time] * 3)
    assert torch.allclose(found.latent_BCTHW[0], model.inputs[0][0][0] - time, atol=1e-5)


def test_flowedit_adds_the_difference_of_the_prompts() -> None:
    model = TextModel()
    clean_CTHW = encode_video(AUTOENCODER, ramp(9), "cpu")
    found = edit(request(model), ramp(9), Edit(strength=1.0, source_NE=torch.full((3, 32), 0.25)))
    assert len(model.inputs) == 2 * 2
    assert torch.allclose(found.latent_BCTHW[0], clean_CTHW - 0.75, atol=1e-5)
    # Both predictions of a step see the same noise, and each step has noise of its own.
    target, source, later = (model.inputs[index][0][0] for index in (0, 1, 3))
    assert torch.allclose(target, source, atol=1e-5)
    assert not torch.allclose(source, later, atol=0.1)


def test_flowedit_between_equal_prompts_keeps_the_video() -> None:
    found = edit(request(TextModel()), ramp(9), Edit(source_NE=torch.ones(2, 32)))
    assert torch.allclose(found.latent_BCTHW[0], encode_video(AUTOENCODER, ramp(9), "cpu"), atol=1e-5)


def test_edits_without_a_length_and_short_videos_are_refused() -> None:
    with pytest.raises(ValueError, match="the video has 8 frames and is too short"):
        edit(request(RecordingModel()), ramp(8))
    with pytest.raises(ValueError, match="seconds: 0 makes an image"):
        edit(request(RecordingModel(), seconds=0), ramp(9))
    with pytest.raises(ValueError, match="strength 0 must be above 0"):
        edit(request(RecordingModel()), ramp(9), Edit(strength=0))
