"""Settings of a sample: its file name, and values that are refused."""

from __future__ import annotations

import pytest

from cluster.config import validate
from training.sampling.settings import SampleSettings


def test_file_names_are_made_from_the_settings() -> None:
    settings = validate(SampleSettings, {"prompt": "A red circle, above a Blue square!", "size": "96x64", "seed": 3})
    assert settings.stem() == "a-red-circle-above-a-blue-square-96x64-seed3"
    assert validate(SampleSettings, {"prompt": "赤い丸"}).stem() == "sample-96x64-seed0"
    assert validate(SampleSettings, {"prompt": "x", "name": "hero"}).stem() == "hero"
    with_images = {"prompt": "x", "first": "/photos/A dog.jpg", "last": "s3://bucket/猫.png"}
    # Conditioning images are part of the name, so that samples with other images have other names.
    assert validate(SampleSettings, with_images).stem() == "x-96x64-seed0-first-a-dog-last-image"


@pytest.mark.parametrize(
    "bad",
    [
        {"size": "96"},
        {"size": "0x64"},
        {"size": "96X64"},
        {"seconds": -1},
        {"prompt": ""},
        {"name": "../up"},
        {"task": "txt"},
        {"first": ""},
        {"first": "a.png", "seconds": 0},
        {"last": "a.png", "seconds": 0},
    ],
)
def test_impossible_samples_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        validate(SampleSettings, {"prompt": "a", **bad})
