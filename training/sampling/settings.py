"""Settings of one sample: an item of the `sample` section of a recipe."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pydantic import Field, ValidationInfo, field_validator

from cluster.config import Settings

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class SolverSettings(Settings):
    """How a sample is made of noise."""

    steps: int = Field(
        50, ge=1, le=1000, description="Evaluations of the velocity; more are slower and follow the path more closely."
    )
    guidance: float = Field(
        5.0, ge=0, description="Classifier-free guidance scale (Ho and Salimans 2022); 1 is none, and halves the cost."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the initial noise.")


class SampleSettings(SolverSettings):
    """What to generate. The same settings and checkpoint give the same file."""

    prompt: str = Field(min_length=1, description="What to show.")
    upsample: bool = Field(False, description="Whether the prompt is made detailed first, as section `upsample` says.")
    seconds: float = Field(2.0, ge=0, le=3600, description="Length, rounded to whole latent frames; 0 makes an image.")
    fps: float | None = Field(
        None, gt=0, le=240, description="Frames a second; by default those the model was trained at."
    )
    size: str = Field(
        "96x64", description="WIDTHxHEIGHT in pixels, rounded to the nearest size the autoencoder and the model take."
    )
    first: str | None = Field(
        None,
        min_length=1,
        description="Picture file that the video begins with, scaled to cover `size` and cropped around its centre.",
    )
    last: str | None = Field(
        None,
        min_length=1,
        description="Picture file that the video ends with; with `first` too, the video connects the two.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[\w][\w.-]*$",
        description="File name without ending; by default made from the prompt and the seed.",
    )

    @field_validator("size")
    @classmethod
    def _size(cls, size: str) -> str:
        if not SIZE.fullmatch(size):
            raise ValueError(f"size '{size}' is not WIDTHxHEIGHT in pixels, such as 96x64")
        return size

    @field_validator("first", "last")
    @classmethod
    def _of_a_video(cls, picture: str | None, others: ValidationInfo) -> str | None:
        if picture is not None and others.data.get("seconds") == 0:
            raise ValueError(
                "a picture is given of a video, and 0 seconds make an image; raise seconds, or leave the picture out"
            )
        return picture

    def given(self) -> dict[str, str]:
        """Files of the pictures that are given, by place: `first`, `last`."""
        return {
            place: picture for place, picture in (("first", self.first), ("last", self.last)) if picture is not None
        }

    def pixels(self) -> tuple[int, int]:
        """Wanted width and height."""
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    def stem(self) -> str:
        """File name without ending."""
        if self.name:
            return self.name
        pictures = "".join(
            f"-{place}-{_words(PurePosixPath(picture).stem) or 'picture'}" for place, picture in self.given().items()
        )
        return f"{_words(self.prompt) or 'sample'}-{self.size}-seed{self.seed}{pictures}"


def _words(text: str) -> str:
    """As a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
