"""Loops: the part that is generated twice stays equal, the loop has no other frames, and given videos are closed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.sampling.test_continuation import CopyingModel, ramp, request
from tests.training.sampling.test_generation import AUTOENCODER, RecordingModel
from training.network import Condition
from training.sampling.loops import closed_loop, new_loop
from training.sampling.request import Context


class CountingModel(RecordingModel):
    """A model that predicts the number of each latent frame as its velocity."""

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        super().forward(latents, condition)
        return [torch.ones_like(latent) * torch.arange(latent.shape[1])[:, None, None] for latent in latents]


def test_both_versions_of_the_overlap_are_equal_at_every_step() -> None:
    model = CountingModel()
    found = new_loop(request(model, seconds=2.0, context=Context(seconds=1.0)))
    for latents, _ in model.inputs:
        assert latents[0].shape[1] == 1 + 4 + 2
        assert latents[0][:, 1:3].equal(latents[0][:, -2:])
    # Frame 1 is also frame 5: its velocity counts a third, as it is the first after the first one.
    change_CHW = (model.inputs[0][0][0] - found.latent_BCTHW[0])[:, 1]
    assert torch.allclose(change_CHW, torch.tensor(1 / 3 * 1 + 2 / 3 * 5), atol=1e-5)


def test_a_loop_has_only_frames_that_follow_others() -> None:
    found = new_loop(request(CountingModel(), seconds=2.0))
    assert (found.start, found.stop) == (1 + 4 * 2, 1 + 4 * 6)
    assert len(found.video(AUTOENCODER)) == 16


@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_the_shortest_loop_has_two_latent_frames(seconds: float) -> None:
    assert len(new_loop(request(CountingModel(), seconds=seconds)).video(AUTOENCODER)) == 8


def test_a_given_video_leads_back_to_its_start() -> None:
    model, video = CopyingModel(), ramp(30)
    closed = closed_loop(request(model), video).video(AUTOENCODER)
    assert len(closed) == 30 + 7
    assert np.array_equal(closed[:30], video)
    assert model.inputs[0][1].conditioning_masks[0].tolist() == [1, 1, 1, 0, 0, 1, 1]


def test_loops_of_one_frame_and_short_videos_are_refused() -> None:
    with pytest.raises(ValueError, match="seconds: 0 makes an image"):
        new_loop(request(CountingModel(), seconds=0))
    with pytest.raises(ValueError, match="the second video has 4 frames and is too short"):
        closed_loop(request(CopyingModel()), ramp(4))
