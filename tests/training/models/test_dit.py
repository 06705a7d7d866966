"""Settings of the model `dit`: presets, and values that are refused."""

from __future__ import annotations

import pytest
import torch

from cluster.config import validate
from training.models._dit_architecture import PRESETS
from training.models.dit import DiT

N_WEIGHTS = {
    "nano": 1_520_832,
    "S": 30_973_888,
    "B": 122_106_688,
    "L": 417_872_960,
    "XL": 613_538_496,
    "1.3B": 1_164_928_576,
}
"""Weights by preset, for 16 channels and text tokens of width 512; counted by hand, layer by layer."""


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_their_number_of_weights(preset: str) -> None:
    with torch.device("meta"):
        model = validate(DiT, {"name": "dit", "preset": preset}).build(channels=16, text_dim=512)
    assert sum(parameter.numel() for parameter in model.parameters()) == N_WEIGHTS[preset]


def test_preset_sets_depth_dim_and_heads() -> None:
    by_preset, by_size = DiT(preset="XL"), DiT(depth=28, dim=1152, heads=9)
    assert (by_preset.size, by_preset.flops(4096, 100)) == (by_size.size, by_size.flops(4096, 100))
    assert validate(DiT, by_preset.model_dump(mode="json")) == by_preset
    with pytest.raises(ValueError, match="preset XL has depth 28, and depth 4 is given; leave out one of them"):
        validate(DiT, {"name": "dit", "preset": "XL", "depth": 4})
    with pytest.raises(ValueError, match="nano"):
        validate(DiT, {"name": "dit", "preset": "XXL"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 100, "heads": 6}, "heads of width 16.6667"),
        ({"dim": 64, "heads": 8}, "heads of width 8;"),
        ({"patch": [0, 2, 2]}, "must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(DiT, {"name": "dit", **settings})
