"""Settings of autoencoder training that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from training.autoencoder_training.settings import AutoencoderTrainSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crops": [{"frames": 4}]}, "frames 4: write 1 \\+ a multiple of 4, 1 or 5"),
        ({"workers": 3}, "batch 8 cannot be shared by 3 workers"),
        ({"strides": [0]}, "every n-th frame"),
        ({"decoder_noise": 0.5}, "decoder_noise 0.5 trains the decoder of given weights: add init, as in init: small"),
        ({"steps": 5, "warmup_steps": 6}, "exceed the 5 steps"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderTrainSettings.model_validate_json(json.dumps(wrong))
