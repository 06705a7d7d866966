"""Extending and connecting videos: given frames stay, the model sees the right context, and lengths add up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.arrays import Pixels, UInt8Array
from tests.support.exported_models import untrained_card
from tests.training.sampling.test_generation import AUTOENCODER, RecordingModel
from training.network import Condition
from training.sampling import continuation
from training.sampling.coding import encode_video
from training.sampling.continuation import Direction
from training.sampling.generation import ModelParts
from training.sampling.request import Context, Request
from training.sampling.settings import SampleSettings, VideoShape

WIDTH, HEIGHT = 32, 16


class CopyingModel(RecordingModel):
    """A model whose clean latents are, in every generated frame, the mean of its conditioning frames."""

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        super().forward(latents, condition)
        found = []
        for latent, mask_T, time_T in zip(latents, condition.conditioning_masks, condition.times, strict=True):
            context = latent[:, mask_T > 0].mean(dim=1, keepdim=True)
            found.append((latent - context) / time_T.clamp_min(1e-6)[:, None, None])
        return found


def request(model: RecordingModel, seconds: float = 1.0, context: Context | None = None) -> Request:
    settings = SampleSettings(prompt="any", size=f"{WIDTH}x{HEIGHT}", seconds=seconds, steps=2, guidance=1.0)
    parts = ModelParts(untrained_card(), model, AUTOENCODER, torch.zeros(1, 32))
    return Request(parts, torch.ones(2, 32), settings, VideoShape(9, HEIGHT, WIDTH, 8.0), context or Context())


def extend(new: Request, video_THWC: Pixels, direction: Direction = "forward") -> UInt8Array:
    return continuation.extend(new, video_THWC, direction).video(AUTOENCODER)


def connect(new: Request, before_THWC: Pixels, after_THWC: Pixels) -> UInt8Array:
    return continuation.connect(new, before_THWC, after_THWC).video(AUTOENCODER)


def flat(n_frames: int, value: int) -> UInt8Array:
    return np.full((n_frames, HEIGHT, WIDTH, 3), value, np.uint8)


def ramp(n_frames: int) -> UInt8Array:
    """Return frames that become brighter, by 4 each."""
    values = 20 + 4 * np.arange(n_frames)
    return np.broadcast_to(values[:, None, None, None], (n_frames, HEIGHT, WIDTH, 3)).astype(np.uint8)


def test_a_video_is_extended_forward_from_its_last_second() -> None:
    model, video = CopyingModel(), ramp(30)
    extended = extend(request(model), video)
    assert len(extended) == 30 + 8
    assert np.array_equal(extended[:30], video)
    latents, condition = model.inputs[0][0][0], model.inputs[0][1]
    assert condition.conditioning_masks[0].tolist() == [1, 1, 1, 0, 0]
    assert latents[:, :3].equal(encode_video(AUTOENCODER, video[-9:], "cpu"))


def test_a_video_is_extended_backward_from_its_first_second() -> None:
    model, video = CopyingModel(), ramp(30)
    extended = extend(request(model), video, "backward")
    assert len(extended) == 8 + 30
    assert np.array_equal(extended[8:], video)
    latents, condition = model.inputs[0][0][0], model.inputs[0][1]
    assert condition.conditioning_masks[0].tolist() == [0, 0, 0, 1, 1]
    assert latents[:, -2:].equal(encode_video(AUTOENCODER, video[:9], "cpu")[:, 1:])


def test_two_videos_are_connected() -> None:
    model, before, after = CopyingModel(), ramp(11), ramp(30)
    connected = connect(request(model), before, after)
    assert len(connected) == 11 + 7 + 30, "the last of 8 new frames is the second video's first one"
    assert np.array_equal(connected[:11], before)
    assert np.array_equal(connected[-30:], after)
    assert model.inputs[0][1].conditioning_masks[0].tolist() == [1, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("value", [40, 200])
def test_new_frames_that_copy_their_context_show_it(value: int) -> None:
    """All indices are right only if no frame of noise or of another position is in the result."""
    video = flat(9, value)
    for found in (
        extend(request(CopyingModel()), video),
        extend(request(CopyingModel()), video, "backward"),
        connect(request(CopyingModel()), video, video),
    ):
        # The latent of a first frame differs from those of several frames, and their mean decodes a little off.
        assert abs(found.astype(int) - value).max() < 40


def test_context_is_as_long_and_as_noisy_as_set() -> None:
    model = CopyingModel()
    extend(request(model, context=Context(seconds=2.0, noise_level=0.1)), ramp(30))
    condition = model.inputs[0][1]
    assert condition.conditioning_masks[0].tolist() == [1] * 5 + [0] * 2
    assert condition.times[0][:5].tolist() == pytest.approx([0.1] * 5)
    short = CopyingModel()
    extend(request(short, context=Context(seconds=2.0)), ramp(3))
    assert short.inputs[0][1].conditioning_masks[0].tolist() == [1, 0, 0], "a short video is an image"


def test_impossible_continuations_are_refused() -> None:
    new = request(CopyingModel())
    with pytest.raises(
        ValueError, match="the video has 4 frames and is too short for its context; it needs at least 5"
    ):
        extend(new, ramp(4), "backward")
    with pytest.raises(ValueError, match="the second video has 1 frames and is too short"):
        connect(new, ramp(4), ramp(1))
    with pytest.raises(ValueError, match="the video is 32x8, but size is 32x16; they must be equal"):
        extend(new, ramp(9)[:, :8])
    with pytest.raises(ValueError, match="seconds: 0 makes an image"):
        extend(request(CopyingModel(), seconds=0), ramp(9))
