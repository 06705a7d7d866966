"""Weight files of the autoencoder `causal` with random weights."""

from __future__ import annotations

import torch

from training.autoencoders._causal_convolutions import CHANNELS, PRESETS
from training.autoencoders._causal_weights import TrainedNetwork, new_network


def random_weights(preset: str = "tiny", seed: int = 0) -> bytes:
    """Return a weight file in which every weight counts: those that start as zeros are random."""
    network = new_network(PRESETS[preset], seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=rng))
    mean_2C, std_2C = torch.rand((2, 2, CHANNELS), generator=rng) + 0.5
    return TrainedNetwork(network, mean_2C - 1, std_2C, {"steps": 0}).to_bytes()
