"""The shipped files of the autoencoder `linear` and the sizes of their blocks. This module does not import torch."""

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
    """Return the content of the shipped file for `channels` latent channels."""
    return resources.files("training.autoencoders.weights").joinpath(f"linear{channels}.safetensors").read_bytes()
