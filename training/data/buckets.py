"""Buckets: the shapes that videos and images are scaled and cropped to, so that samples of one shape share a batch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from pydantic import Field, field_validator

from cluster.arrays import Int64Array
from cluster.config import Settings

SIDE_MULTIPLE = 16
"""Default divisor of the sides in pixels: 8 for a cell of the autoencoder times 2 for a patch of the model."""

FRAMES_STEP = 4
"""Frame counts are 1 + a multiple of this: an autoencoder's first latent frame is one frame, each later one is four."""

TOLERANCE_S = 1e-6
"""Seconds that a clip may be shorter than its bucket, since durations are floats computed from timestamps."""


@dataclass(frozen=True)
class Bucket:
    """A shape: sides in pixels, number of frames, and the frames per second at which they are sampled."""

    width: int
    height: int
    frames: int
    fps: float

    @property
    def name(self) -> str:
        """Name `WIDTHxHEIGHTxFRAMES`; samples of one name can share a batch, whatever their frame rate."""
        return f"{self.width}x{self.height}x{self.frames}"

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.frames - 1) / self.fps


def parse_bucket_name(name: str) -> tuple[int, int, int]:
    """Return (width, height, frames) of a bucket's name."""
    width, height, frames = (int(number) for number in name.split("x"))
    return width, height, frames


def latent_size(width: int, height: int, frames: int, time_factor: int, space_factor: int) -> tuple[int, int, int]:
    """Return the size (t, h, w) of a latent: its first frame is one frame, each later one is `time_factor` frames."""
    return 1 + (frames - 1) // time_factor, height // space_factor, width // space_factor


class BucketSettings(Settings):
    """Settings of buckets of about equal area: one for each aspect and each number of frames."""

    size: int = Field(ge=16, description="Side in pixels of the square whose area every bucket has, nearly.")
    frames: tuple[int, ...] = Field(
        min_length=1, description="Numbers of frames, each 1 + a multiple of 4. Images need a 1."
    )
    fps: float = Field(gt=0, allow_inf_nan=False, description="Frames per second at which videos are sampled.")
    multiple: int = Field(
        SIDE_MULTIPLE,
        ge=1,
        description="Divisor of the sides in pixels: a cell of the autoencoder times a patch of the model.",
    )
    aspects: tuple[str, ...] = Field(
        ("16:9", "4:3", "1:1", "3:4", "9:16"), min_length=1, description="Aspects, as width:height."
    )

    @field_validator("frames")
    @classmethod
    def _causal(cls, frames: tuple[int, ...]) -> tuple[int, ...]:
        for count in frames:
            if count < 1 or (count - 1) % FRAMES_STEP:
                below = max(1, 1 + (count - 1) // FRAMES_STEP * FRAMES_STEP)
                raise ValueError(
                    f"{count} frames: numbers of frames are 1 + a multiple of {FRAMES_STEP}; "
                    f"take {below} or {below + FRAMES_STEP}"
                )
        if len(set(frames)) < len(frames):
            raise ValueError(f"frames {list(frames)}: a number is repeated; keep one of them")
        return frames

    @field_validator("aspects")
    @classmethod
    def _ratios(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        for aspect in aspects:
            if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", aspect):
                raise ValueError(f"aspect '{aspect}': write width:height in whole numbers, as in 16:9")
        return aspects

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each aspect, rounded to multiples of `multiple`; each shape once."""
        return tuple(dict.fromkeys(self._shape(*(int(side) for side in aspect.split(":"))) for aspect in self.aspects))

    def _shape(self, aspect_width: int, aspect_height: int) -> tuple[int, int]:
        ratio = math.sqrt(aspect_width / aspect_height)
        return _nearest_multiple(self.size * ratio, self.multiple), _nearest_multiple(self.size / ratio, self.multiple)

    def nearest_shape(self, width: int, height: int) -> tuple[int, int]:
        """Return the shape with the aspect nearest to that of `width` x `height`, by the logarithm of their ratio."""
        return min(self.shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - math.log(width / height)))

    def buckets(self) -> tuple[Bucket, ...]:
        """Return all buckets, shapes in the order of `aspects`."""
        return tuple(Bucket(width, height, frames, self.fps) for width, height in self.shapes for frames in self.frames)


def _nearest_multiple(side: float, multiple: int) -> int:
    return max(1, math.floor(side / multiple + 0.5)) * multiple


def assign_bucket(
    buckets: Sequence[BucketSettings], width: int, height: int, duration_s: float, is_image: bool
) -> Bucket | str:
    """Return the bucket for an image or clip of this size and duration, or the reason why no bucket takes it.

    Among the shapes of the nearest aspects, the largest area that does not enlarge the source wins, then the most
    frames that its duration holds, then the highest frame rate. Images go to buckets of 1 frame. Raises `ValueError` if
    `buckets` is empty.
    """
    if not buckets:
        raise ValueError("no buckets: give at least one size")
    if width < 1 or height < 1:
        return f"the source is {width}x{height}, which is empty"
    nearest = [(settings, settings.nearest_shape(width, height)) for settings in buckets]
    # Scaling to cover the bucket enlarges the source if and only if one of its sides is shorter than the bucket's.
    fitting = [(settings, shape) for settings, shape in nearest if shape[0] <= width and shape[1] <= height]
    if not fitting:
        smallest = min((shape for _, shape in nearest), key=math.prod)
        return (
            f"{width}x{height} is smaller than {smallest[0]}x{smallest[1]}, the smallest bucket of its aspect, "
            "and would have to be enlarged"
        )
    candidates = [Bucket(*shape, frames, settings.fps) for settings, shape in fitting for frames in settings.frames]
    if is_image:
        of_images = [bucket for bucket in candidates if bucket.frames == 1]
        if not of_images:
            return "it is an image, and no bucket it could fill has 1 among its frames"
        return max(of_images, key=_preference)
    short_enough = [bucket for bucket in candidates if bucket.duration_s <= duration_s + TOLERANCE_S]
    if not short_enough:
        shortest = min(candidates, key=lambda bucket: bucket.duration_s)
        return (
            f"{duration_s:.2f} s is shorter than {shortest.duration_s:.2f} s, the duration of {shortest.frames} frames "
            f"at {shortest.fps:g} fps"
        )
    return max(short_enough, key=_preference)


def buckets_up_to(buckets: Sequence[BucketSettings], bucket: Bucket) -> tuple[Bucket, ...]:
    """Return a video's bucket and all shorter ones of its shape and frame rate, longest first.

    A clip fills each of them with its first frames.
    """
    alike = [
        settings
        for settings in buckets
        if settings.fps == bucket.fps and (bucket.width, bucket.height) in settings.shapes
    ]
    frames = {count for settings in alike for count in settings.frames if count <= bucket.frames}
    return tuple(replace(bucket, frames=count) for count in sorted(frames, reverse=True))


def _preference(bucket: Bucket) -> tuple[int, int, float]:
    """Return the key by which the best bucket is the largest."""
    return bucket.width * bucket.height, bucket.frames, bucket.fps


def number_buckets(buckets: Sequence[str]) -> tuple[list[str], Int64Array]:
    """Return the sorted names that occur, and the index into them for each row."""
    names = sorted(set(buckets))
    number_of = {name: number for number, name in enumerate(names)}
    return names, np.fromiter((number_of[name] for name in buckets), np.int64, len(buckets))


def rows_by_number(numbers: Int64Array, count: int) -> list[Int64Array]:
    """Return the rows that have each of the numbers 0, 1, ... `count - 1`, ascending."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count)))[:count]
