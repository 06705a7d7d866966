"""Numbers of weights of published models, counted by hand, layer by layer."""

from __future__ import annotations

import pytest
import torch

from benchmarks.published_memory import ADAPTER, WAN, Model, count_weights, kept_bytes, kept_on_fake_tensors
from training.adapters.lora import add_adapter

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "dim", "hidden", "depth", "channels"),
    [
        ("Wan 1.3B", 1536, 8960, 30, 16),
        ("Wan TI2V-5B", 3072, 14336, 30, 48),
        ("Wan 14B", 5120, 13824, 40, 16),
    ],
)
def test_weights_of_wan(model: str, dim: int, hidden: int, depth: int, channels: int) -> None:
    attention = 4 * (dim * dim + dim) + 2 * dim
    block = 2 * attention + 2 * dim + (2 * dim * hidden + hidden + dim) + 6 * dim
    patches = (4 * channels * dim + dim) + (4 * channels * dim + 4 * channels)
    text = 4096 * dim + dim + dim * dim + dim
    time = 256 * dim + dim + dim * dim + dim + 6 * (dim * dim + dim)
    assert count_weights(model) == depth * block + patches + text + time + 2 * dim
    assert count_weights(model, adapter=True) == 32 * depth * (8 * 2 * dim + 2 * (dim + hidden))


def test_weights_of_ltx() -> None:
    dim, hidden, depth, channels = 2048, 8192, 28, 128
    attention = 4 * (dim * dim + dim) + 2 * dim
    block = 2 * attention + (2 * dim * hidden + hidden + dim) + 6 * dim
    outside = (channels * dim + dim) + (channels * dim + channels) + 2 * dim
    text = 4096 * dim + dim + dim * dim + dim
    time = 256 * dim + dim + dim * dim + dim + 6 * (dim * dim + dim)
    assert count_weights("LTX-Video") == depth * block + outside + text + time


@pytest.mark.parametrize(("model", "heads", "depth"), [("CogVideoX-2B", 30, 30), ("CogVideoX-5B", 48, 42)])
def test_weights_of_cogvideox(model: str, heads: int, depth: int) -> None:
    dim, head, channels, time = 64 * heads, 64, 16, 512
    attention = 4 * (dim * dim + dim) + 4 * head
    norms = 2 * (time * 6 * dim + 6 * dim + 2 * dim)
    block = attention + norms + 8 * dim * dim + 5 * dim
    patches = (4 * channels * dim + dim) + (4 * channels * dim + 4 * channels)
    text_and_time = 4096 * dim + dim + (dim * time + time) + (time * time + time)
    last = 2 * dim + (time * 2 * dim + 2 * dim) + 2 * dim
    assert count_weights(model) == depth * block + patches + text_and_time + last


TINY = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 96, "text_dim": 32, "freq_dim": 32}


@pytest.mark.parametrize("adapter", [False, True])
def test_fake_activations_are_those_of_real_tensors(adapter: bool) -> None:
    """Each block adds the same, and one that is recomputed keeps its input alone."""
    model = Model(WAN, TINY, (3, 8, 8))
    fake = [kept_on_fake_tensors(model, adapter, depth) for depth in range(1, 4)]
    assert fake[2] - fake[1] == fake[1] - fake[0] > 3 * 4 * 4 * 48 * 2
    settings = model.settings(num_layers=3)
    torch.manual_seed(0)
    network = settings.build(16, 32)
    if adapter:
        add_adapter(network, ADAPTER.resolved(settings))
    assert kept_bytes(network.to(torch.bfloat16), settings, model.latent) == fake[2]
