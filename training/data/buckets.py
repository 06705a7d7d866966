"""Buckets: the shapes that videos and images are scaled and cropped to, so that samples of one shape share a batch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from cluster.arrays import Int64Array
from cluster.config import Settings

SIDE_MULTIPLE = 16
"""Default divisor of the sides in pixels: 8 for a cell of the autoencoder times 2 for a patch of the model."""

FRAMES_STEP = 4
"""Frame counts are 1 + a multiple of this: an autoencoder's first latent frame is one frame, each later one is four."""


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

    def buckets(self) -> tuple[Bucket, ...]:
        """Return all buckets, shapes in the order of `aspects`."""
        return tuple(Bucket(width, height, frames, self.fps) for width, height in self.shapes for frames in self.frames)


def _nearest_multiple(side: float, multiple: int) -> int:
    return max(1, math.floor(side / multiple + 0.5)) * multiple


@dataclass(frozen=True)
class SizeChoice:
    """The shape at which a source may be encoded at one size and frame rate, and the numbers of frames there."""

    width: int
    height: int
    fps: float
    frames: tuple[int, ...]


def fitting_choices(buckets: Sequence[BucketSettings], width: int, height: int) -> tuple[SizeChoice, ...] | str:
    """Return a choice for each size and frame rate that need not enlarge a source of `width` x `height`.

    Entries of one size and rate are one choice: the shape of the nearest aspect among theirs, with the numbers of
    frames of those that have it. If every shape would enlarge the source, return that as the reason. Raises
    `ValueError` if `buckets` is empty.
    """
    if not buckets:
        raise ValueError("no buckets: give at least one size")
    if width < 1 or height < 1:
        return f"the source is {width}x{height}, which is empty"
    entries_of: dict[tuple[int, float], list[BucketSettings]] = {}
    for entry in buckets:
        entries_of.setdefault((entry.size, entry.fps), []).append(entry)
    choices = []
    for (_, fps), entries in entries_of.items():
        shape = nearest_shape([shape for entry in entries for shape in entry.shapes], width, height)
        frames = sorted({count for entry in entries if shape in entry.shapes for count in entry.frames})
        choices.append(SizeChoice(*shape, fps, tuple(frames)))
    # Scaling to cover the bucket enlarges the source if and only if one of its sides is shorter than the bucket's.
    fitting = tuple(choice for choice in choices if choice.width <= width and choice.height <= height)
    if not fitting:
        smallest = min(choices, key=lambda choice: choice.width * choice.height)
        return (
            f"{width}x{height} is smaller than {smallest.width}x{smallest.height}, the smallest bucket of its aspect, "
            "and would have to be enlarged"
        )
    return fitting


def nearest_shape(shapes: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """Return the shape with the aspect nearest to that of `width` x `height`, by the logarithm of their ratio."""
    return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - math.log(width / height)))


def shorter_lengths(buckets: Sequence[BucketSettings], bucket: Bucket) -> tuple[Bucket, ...]:
    """Return the shorter buckets of a bucket's shape and frame rate, longest first.

    A clip fills each of them with its first frames.
    """
    alike = [entry for entry in buckets if entry.fps == bucket.fps and (bucket.width, bucket.height) in entry.shapes]
    frames = {count for entry in alike for count in entry.frames if count < bucket.frames}
    return tuple(replace(bucket, frames=count) for count in sorted(frames, reverse=True))


def number_buckets(buckets: Sequence[str] | pa.ChunkedArray) -> tuple[list[str], Int64Array]:
    """Return the sorted names that occur, and the index into them for each row.

    A column of Arrow is never a list of Python's strings, which take 80 bytes each.
    """
    column = buckets if isinstance(buckets, pa.ChunkedArray) else pa.chunked_array([buckets], pa.string())
    names = sorted(pc.unique(column).to_pylist())
    numbers = pc.index_in(column, value_set=pa.array(names, pa.string()))
    return names, np.asarray(numbers, np.int64)


def rows_by_number(numbers: Int64Array, count: int) -> list[Int64Array]:
    """Return the rows that have each of the numbers 0, 1, ... `count - 1`, ascending."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count)))[:count]
