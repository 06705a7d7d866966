"""Pictures that a sampled video begins or ends with, read as `encode` reads images."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from cluster.config import ConfigError
from cluster.telemetry import log
from pipelines.video.errors import DecodeError
from pipelines.video.scale import Pixels, centre_crop
from pipelines.video.still import read_image, resize_image
from training.sampling.settings import SampleSettings


def check_pictures(samples: Iterable[SampleSettings]) -> None:
    """Read every picture of these samples once, before anything is done for them. Raises `ConfigError` as `read_picture` does."""
    for sample in samples:
        for picture in sample.given().values():
            _opened(picture)


def read_picture(uri: str, width: int, height: int) -> Pixels:
    """RGB `[height, width, 3]`: the picture scaled to cover that size and cropped around its centre; one that is too small is enlarged.

    Raises `ConfigError` for a file that is not there or is no picture.
    """
    image = _opened(uri)
    if image.width < width or image.height < height:
        log.warning(
            f"{uri}: is {image.width}x{image.height} and is enlarged to {width}x{height}; training shows no picture that was enlarged"
        )
    return resize_image(image, centre_crop(image.width, image.height, width, height), width, height)


def _opened(uri: str) -> Image.Image:
    try:
        return read_image(uri)
    except DecodeError as error:
        raise ConfigError(f"{uri}: cannot be read as a picture: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"{uri}: cannot be read: {error}; `first` and `last` of a sample are picture files"
        ) from error
