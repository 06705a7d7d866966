"""Long videos: windows follow each other in latents, each sees the one before, and prompts change by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training.sampling.test_continuation import request
from tests.training.sampling.test_generation import AUTOENCODER, RecordingModel
from training.network import Condition
from training.sampling.long_video import long_video
from training.sampling.request import Context, Request, new_video
from training.sampling.settings import VideoShape


class ProvidingModel(RecordingModel):
    """A model whose clean latents are the mean of the text."""

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        super().forward(latents, condition)
        return [
            (latent - text.mean()) / time_T.clamp_min(1e-6)[:, None, None]
            for latent, text, time_T in zip(latents, condition.texts, condition.times, strict=True)
        ]


def long_request(
    model: RecordingModel, seconds: float, context: Context | None = None, spans: tuple[str, ...] = ()
) -> Request:
    job = request(model, seconds, context)
    settings = job.settings.model_copy(update={"spans": spans})
    texts = {span.prompt: torch.full((2, 32), 10.0 + index) for index, span in enumerate(settings.prompt_spans())}
    frames = 1 + 4 * job.latents_in(seconds)
    return replace(job, settings=settings, span_texts=texts, shape=VideoShape(frames, 16, 32, 8.0))


def test_every_window_sees_the_end_of_the_one_before() -> None:
    model = RecordingModel()
    found = long_video(long_request(model, 4.0, Context(1.0, noise_level=0.1)), 2.0)
    assert found.latent_BCTHW.shape[2] == 1 + 8
    masks = [condition.conditioning_masks[0].tolist() for _, condition in model.inputs[::2]]
    # A first frame alone, one given latent frame, one blended, and new ones; the last window is shorter.
    assert masks == [[0] * 5, [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert model.inputs[2][1].times[0][1].item() == pytest.approx(0.1)
    noise = [latents[0][:, -1] for latents, _ in model.inputs[::2]]
    assert not noise[0].equal(noise[1])
    assert not noise[1].equal(noise[2])


def test_given_frames_are_those_of_the_window_before() -> None:
    model = ProvidingModel()
    found = long_video(long_request(model, 3.0, Context(1.0)), 2.0)
    (latents, *_), _ = model.inputs[2]
    assert latents[:, 1].equal(found.latent_BCTHW[0, :, 3])
    assert torch.allclose(found.latent_BCTHW, torch.ones(1), atol=1e-4)


def test_the_overlap_is_blended_with_the_window_before() -> None:
    model = RecordingModel()
    found = long_video(long_request(model, 3.0, Context(1.0)), 2.0).latent_BCTHW[0]
    before_CHW = model.inputs[0][0][0][:, 4] - 1  # velocity 1 over the whole path
    noise_CHW = model.inputs[2][0][0][:, 2]
    assert torch.allclose(found[:, 4], (before_CHW + noise_CHW - 1) / 2, atol=1e-5)


def test_no_window_is_longer_than_the_others() -> None:
    model = RecordingModel()
    long_video(long_request(model, 15.0), 2.0)
    assert {latents[0].shape[1] for latents, _ in model.inputs} <= {4, 5}


def test_prompts_change_by_time() -> None:
    spans = ("1-2: y", "2-3: z")
    for found in (
        long_video(long_request(ProvidingModel(), 4.0, spans=spans), 2.0),
        new_video(long_request(ProvidingModel(), 4.0, spans=spans)),
    ):
        values = found.latent_BCTHW[0, 0, :, 0, 0].tolist()
        assert values[:2] == pytest.approx([1, 1], abs=1e-3)
        assert values[2] == pytest.approx(10, abs=1e-3)
        assert values[5] == pytest.approx(11, abs=1e-3)
        assert values[6:] == pytest.approx([1] * 3, abs=1e-3)


def test_a_video_of_one_window_is_a_plain_one() -> None:
    job = long_request(RecordingModel(), 1.0)
    assert long_video(job, 2.0).latent_BCTHW.equal(new_video(job).latent_BCTHW)
    assert len(long_video(job, 2.0).video(AUTOENCODER)) == 9


def test_an_image_begins_the_first_window() -> None:
    model, image_C1HW = RecordingModel(), torch.full((16, 1, 2, 4), 7.0)
    found = long_video(long_request(model, 3.0), 2.0, image_C1HW)
    assert found.latent_BCTHW[0, :, :1].equal(image_C1HW)
    masks = [condition.conditioning_masks[0][0].item() for _, condition in model.inputs[::2]]
    assert masks == [1, 0]


def test_windows_without_new_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="2 s leaves nothing new in windows of 2 s: they have 4 and 4 latent frames"):
        long_video(long_request(RecordingModel(), 9.0, Context(2.0)), 2.0)
