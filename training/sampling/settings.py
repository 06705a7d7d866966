"""Settings of one sample: an item of the `sample` section of a recipe."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from cluster.config import Settings

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class VideoShape(NamedTuple):
    """The size of a sample in pixels; an image has one frame."""

    frames: int
    height: int
    width: int
    fps: float


class SolverSettings(Settings):
    """Settings of the solver, which integrates from noise to a sample."""

    steps: int = Field(
        50, ge=1, le=1000, description="Solver steps; each evaluates the model once, or twice with guidance."
    )
    guidance: float = Field(
        5.0,
        ge=0,
        description="Classifier-free guidance scale (Ho and Salimans 2022); 1 turns it off and halves the cost.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the initial noise.")


class SampleSettings(SolverSettings):
    """Settings of one sample. The same settings and model give the same file."""

    prompt: str = Field(min_length=1, description="Text that describes the sample.")
    upsample: bool = Field(
        False, description="Make the prompt detailed first, with the settings of section `upsample`."
    )
    seconds: float = Field(
        2.0, ge=0, le=3600, description="Length in seconds, rounded to whole latent frames; 0 makes an image."
    )
    fps: float | None = Field(None, gt=0, le=240, description="Frames per second; by default those of training.")
    size: str = Field(
        "96x64", description="WIDTHxHEIGHT in pixels, rounded to the nearest size that the model can make."
    )
    first: str | None = Field(
        None,
        min_length=1,
        description="Image file that the video begins with, scaled to cover `size` and cropped around its centre.",
    )
    last: str | None = Field(
        None,
        min_length=1,
        description="Image file that the video ends with. With `first`, the video connects the two.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[\w][\w.-]*$",
        description="File name without suffix; by default made from prompt, size and seed.",
    )

    @field_validator("size")
    @classmethod
    def _size(cls, size: str) -> str:
        if not SIZE.fullmatch(size):
            raise ValueError(f"size '{size}' is not WIDTHxHEIGHT in pixels, such as 96x64")
        return size

    @field_validator("first", "last")
    @classmethod
    def _needs_a_video(cls, file: str | None, others: ValidationInfo) -> str | None:
        if file is not None and others.data.get("seconds") == 0:
            raise ValueError("only a video begins or ends with an image, and seconds: 0 makes an image; raise seconds")
        return file

    def images(self) -> dict[str, str]:
        """Return the image files that the video begins or ends with, by `first` and `last`."""
        return {end: file for end, file in (("first", self.first), ("last", self.last)) if file is not None}

    def pixels(self) -> tuple[int, int]:
        """Return the requested width and height."""
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    def stem(self) -> str:
        """Return the file name without suffix."""
        if self.name:
            return self.name
        images = "".join(f"-{end}-{_words(PurePosixPath(file).stem) or 'image'}" for end, file in self.images().items())
        return f"{_words(self.prompt) or 'sample'}-{self.size}-seed{self.seed}{images}"


def _words(text: str) -> str:
    """Return text as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
