"""Frames to latents and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from training.autoencoder import Autoencoder
from training.autoencoders.causal import Causal
from training.autoencoders.linear import Linear
from training.sampling.coding import decode_frames, decode_video, encode_video, to_pixels


def test_pixels_are_rounded_and_clamped() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert to_pixels(video)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_video_returns_through_its_latents() -> None:
    autoencoder = Linear().open()
    ramp_THWC = np.broadcast_to(np.linspace(20, 220, 48)[None, None, :, None], (5, 32, 48, 3)).astype(np.uint8)
    latent_CTHW = encode_video(autoencoder, ramp_THWC, "cpu")
    assert latent_CTHW.shape == (16, 2, 4, 6)
    assert abs(decode_video(autoencoder, latent_CTHW[None]).astype(int) - ramp_THWC).mean() < 8


def noise(frames: int, rows: int = 4, columns: int = 6) -> Tensor:
    return torch.randn(1, 16, frames, rows, columns, generator=torch.Generator().manual_seed(0))


SLOW = pytest.mark.slow
AUTOENCODERS = {"linear": Linear(), "causal": Causal(), "tiled": Causal(tile=64, chunk=2)}


@pytest.mark.parametrize("name", ["linear", pytest.param("causal", marks=SLOW), pytest.param("tiled", marks=SLOW)])
def test_frames_that_stream_are_those_of_the_whole(name: str) -> None:
    opened, latent_BCTHW = AUTOENCODERS[name].open(), noise(3, 4, 10)
    streamed = np.stack(list(decode_frames(opened, latent_BCTHW)))
    assert streamed.shape == (9, 32, 80, 3)
    np.testing.assert_array_equal(streamed, decode_video(opened, latent_BCTHW))


@pytest.mark.parametrize("name", ["linear", pytest.param("causal", marks=SLOW)])
def test_frames_are_decoded_when_they_are_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = AUTOENCODERS[name].open()
    read: list[int] = []

    def pieces() -> Iterator[Tensor]:
        for index, piece in enumerate(noise(50).split(1, dim=2)):
            read.append(index)
            yield piece

    decode = opened.decode_stream
    monkeypatch.setattr(opened, "decode_stream", lambda latents: decode(pieces()))
    frames = decode_frames(opened, noise(50))
    for _ in range(5):  # the first latent frame is one frame, the second four
        next(frames)
    assert read == [0, 1]
    assert torch.is_grad_enabled()


def test_other_autoencoders_decode_all_latents_together() -> None:
    class Whole(Autoencoder):
        """An autoencoder whose frames have the mean of all latents."""

        def encode(self, video_BCTHW: Tensor) -> Tensor:
            raise AssertionError("nothing is encoded")

        def decode(self, latent_BCTHW: Tensor) -> Tensor:
            return latent_BCTHW.mean().expand(1, 3, latent_BCTHW.shape[2], 8, 8)

    def parts() -> Iterable[Tensor]:
        yield from noise(3).split(2, dim=2)

    (video_BCTHW,) = Whole().decode_stream(parts())
    torch.testing.assert_close(video_BCTHW, noise(3).mean().expand(1, 3, 3, 8, 8))
