"""Numbers of weights of published models, counted by hand, layer by layer."""

from __future__ import annotations

import pytest

from benchmarks.published_memory import count_weights

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


def test_weights_of_ltx() -> None:
    dim, hidden, depth, channels = 2048, 8192, 28, 128
    attention = 4 * (dim * dim + dim) + 2 * dim
    block = 2 * attention + (2 * dim * hidden + hidden + dim) + 6 * dim
    outside = (channels * dim + dim) + (channels * dim + channels) + 2 * dim
    text = 4096 * dim + dim + dim * dim + dim
    time = 256 * dim + dim + dim * dim + dim + 6 * (dim * dim + dim)
    assert count_weights("LTX-Video") == depth * block + outside + text + time
