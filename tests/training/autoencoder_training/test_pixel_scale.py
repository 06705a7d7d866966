"""Coordinates of latents by their effect on pixels: against the linear maps' own, and with the same reconstructions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.autoencoder_training.pixel_scale import change_coordinates, pixel_coordinates, pixel_metric
from training.autoencoders._causal_convolutions import CHANNELS, PRESETS
from training.autoencoders._causal_network import CausalNetwork
from training.autoencoders._causal_weights import new_network


@pytest.fixture
def network() -> CausalNetwork:
    """An untrained network, which adds nothing to its linear maps."""
    return new_network(PRESETS["tiny"], 0).eval().requires_grad_(False)


@pytest.fixture
def corrected(network: CausalNetwork) -> CausalNetwork:
    """A network whose convolutions add something."""
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return network


def video(frames: int) -> Tensor:
    return torch.rand((2, 3, frames, 16, 24), generator=torch.Generator().manual_seed(frames)) * 2 - 1


def test_the_metric_of_linear_maps_is_their_own(network: CausalNetwork) -> None:
    first, group = ((part.restore.T @ part.restore).double() for part in (network.first, network.group))
    assert torch.allclose(pixel_metric(network, [video(1)]), first, atol=1e-3)
    # Of three latent frames, one is a first one.
    assert torch.allclose(pixel_metric(network, [video(9)]), (first + 2 * group) / 3, atol=1e-3)


def test_in_its_own_coordinates_the_metric_is_one(corrected: CausalNetwork) -> None:
    videos = [video(9), video(1)]
    map_KC = pixel_coordinates(pixel_metric(corrected, videos))
    before = pixel_metric(corrected, videos)
    change_coordinates(corrected, map_KC)
    after = pixel_metric(corrected, videos)
    one = torch.eye(CHANNELS, dtype=torch.float64)
    assert torch.allclose(map_KC, map_KC.T, atol=1e-9)
    # Convolutions are not linear, and changes are of one size in both coordinates, so it is about 1.
    assert (after - one).norm() < 0.2 * one.norm() < (before - one).norm()


@pytest.mark.parametrize("frames", [1, 9])
def test_only_latents_change(corrected: CausalNetwork, frames: int) -> None:
    map_KC = torch.eye(CHANNELS) + 0.2 * torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(2))
    mean, log_variance = corrected.encode(video(frames))
    made = corrected.decode(mean)
    change_coordinates(corrected, map_KC)
    changed, same = corrected.encode(video(frames))
    assert torch.allclose(changed, torch.einsum("kc,bcthw->bkthw", map_KC, mean), atol=1e-4)
    assert torch.equal(same, log_variance)
    assert torch.allclose(corrected.decode(changed), made, atol=1e-4)


def test_channels_without_effect_keep_a_scale() -> None:
    metric_CC = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.allclose(pixel_coordinates(metric_CC).diagonal(), torch.tensor([2.0, 1.0, 0.02], dtype=torch.float64))
