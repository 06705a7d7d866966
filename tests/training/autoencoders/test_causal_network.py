"""The network of `causal`: its receptive field, its sizes, and its start at the linear autoencoder."""

from __future__ import annotations

import pytest
import torch

from tests.support.causal_weights import random_weights
from tests.support.noise import uniform_noise
from training.autoencoders._causal_convolutions import PRESETS
from training.autoencoders._causal_weights import TrainedNetwork, new_network
from training.autoencoders.linear import Linear


@pytest.mark.parametrize("preset", list(PRESETS))
def test_receptive_radius_covers_all_convolutions(preset: str) -> None:
    architecture = PRESETS[preset]
    radius = 8 * architecture.receptive_radius
    assert radius >= architecture.encoder_fine * 4 + (architecture.encoder_coarse + 1) * 8
    assert radius >= (architecture.decoder_fine + 1) * 4 + (architecture.decoder_coarse + 1) * 8


def test_receptive_radius_is_what_gradients_reach() -> None:
    network, radius = TrainedNetwork.from_bytes(random_weights(), "it").network, PRESETS["tiny"].receptive_radius
    video = uniform_noise((1, 3, 1, 8, 160)).requires_grad_()
    network.encode(video)[0][..., 10].sum().backward()
    assert video.grad is not None
    columns = video.grad.abs().sum((0, 1, 2, 3)).nonzero()
    assert 80 - 8 * radius <= columns.min() < 80 - 8 * (radius - 2)


def test_untrained_network_is_the_linear_autoencoder() -> None:
    network = new_network(PRESETS["tiny"], 0)
    linear = Linear(channels=16).open()
    video_BCTHW = uniform_noise((2, 3, 9, 16, 24))
    latent_BCTHW, _ = network.encode(video_BCTHW)
    assert torch.allclose(latent_BCTHW, linear.encode(video_BCTHW), atol=1e-5)
    assert torch.allclose(network.decode(latent_BCTHW), linear.decode(latent_BCTHW), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "low", "high"), [("small", 3e6, 4e6), ("large", 60e6, 100e6)])
def test_presets_have_their_sizes(preset: str, low: float, high: float) -> None:
    assert low < sum(weight.numel() for weight in new_network(PRESETS[preset], 0).parameters()) < high


def test_weight_file_of_preset_small_is_below_8_mb() -> None:
    trained = TrainedNetwork(new_network(PRESETS["small"], 0), torch.zeros(2, 16), torch.ones(2, 16), {})
    assert len(trained.to_bytes()) < 8e6
