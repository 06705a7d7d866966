"""The shipped files of the autoencoder `linear` and the sizes of their blocks. Loads no torch."""

from __future__ import annotations

from functools import cache
from importlib import resources

TIME_FACTOR = 4
"""Frames of a group, which share one latent frame."""

SPACE_FACTOR = 8
"""Side of a block in pixels."""

FIRST_VALUES = 3 * SPACE_FACTOR**2
"""Pixel values of a block of the first frame: 192."""

GROUP_VALUES = TIME_FACTOR * FIRST_VALUES
"""Pixel values of a block of a group of frames: 768."""


@cache
def weights_bytes(channels: int) -> bytes:
    """The shipped file for so many channels."""
    return resources.files("training.autoencoders.weights").joinpath(f"linear{channels}.safetensors").read_bytes()
