"""Image files that a sampled video begins or ends with, read as `encode` reads images."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from cluster.arrays import Pixels
from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.video.decode import DecodeError
from pipelines.video.scale import centre_crop
from pipelines.video.still_images import read_image, resize_image
from training.sampling.settings import SampleSettings


def check_images(samples: Iterable[SampleSettings]) -> None:
    """Read every conditioning image of these samples once. Raises `ConfigError` as `read_conditioning_image` does."""
    for sample in samples:
        for uri in sample.images().values():
            _open(uri)


def read_conditioning_image(uri: str, width: int, height: int) -> Pixels:
    """Return the RGB image `[height, width, 3]`, scaled to cover that size and cropped around its centre.

    An image that is smaller is enlarged, with a warning. Raises `ConfigError` for a file that is missing or no image.
    """
    image = _open(uri)
    if image.width < width or image.height < height:
        log.warning(
            f"{uri}: is {image.width}x{image.height} and is enlarged to {width}x{height}; "
            "training never enlarges images"
        )
    return resize_image(image, centre_crop(image.width, image.height, width, height), width, height)


def _open(uri: str) -> Image.Image:
    try:
        return read_image(uri)
    except DecodeError as error:
        raise ConfigError(f"{uri}: cannot be read as an image: {error}") from error
    except OSError as error:
        raise ConfigError(f"{uri}: cannot be read: {error}; `first` and `last` of a sample are image files") from error
