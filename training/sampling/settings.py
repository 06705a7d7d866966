"""Settings of one sample: an item of the `sample` section of a recipe."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from cluster.config import Settings
from cluster.plugins import PluginField
from cluster.storage import digest
from training.adapters.source import parse_all
from training.model import ModelSettings
from training.sampling.guidance import FOLDER as GUIDANCES
from training.sampling.guidance import Guidance
from training.sampling.guidances.plain import Plain
from training.sampling.solver import FOLDER as SOLVERS
from training.sampling.solver import Solver
from training.sampling.solvers.unipc import UniPC
from training.sampling.task_settings import TASKS, TaskSettings, check_task

SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
MAX_WORDS_BYTES = 48
"""Most bytes of a prompt in a file name, of which file systems take 255."""
MAX_PROMPT_CHARACTERS = 8000
"""Longest prompt, about 1,300 English words. Text encoders read at most some hundreds."""


def check_prompt(prompt: str) -> str:
    """Return a prompt. Raises `ValueError` for one that is too long, or with a control character such as NUL."""
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"the prompt has {len(prompt)} characters, in {len(prompt.split())} words; at most "
            f"{MAX_PROMPT_CHARACTERS} characters are allowed, and text encoders read some hundreds of words: shorten it"
        )
    control = next((letter for letter in prompt if unicodedata.category(letter) == "Cc" and letter not in "\t\n\r"), "")
    if control:
        raise ValueError(
            f"the prompt has the control character U+{ord(control):04X} at position {prompt.index(control)}; remove it"
        )
    return prompt


def size_units(space_factor: int, model: ModelSettings) -> tuple[int, int]:
    """Return the pixels that width and height are multiples of: a side of a latent cell times that of a patch."""
    _, rows, columns = getattr(model, "patch", (1, 1, 1))
    return space_factor * columns, space_factor * rows


class VideoShape(NamedTuple):
    """The size of a sample in pixels; an image has one frame."""

    frames: int
    height: int
    width: int
    fps: float


def is_high_noise(time: float, boundary: float) -> bool:
    """Return whether the expert of high noise levels predicts at a level.

    Times are compared in float32 and times 1000, as by WanPipeline: at the boundary itself rounding decides.
    """
    return bool(np.float32(1000) * np.float32(time) >= 1000 * boundary)


class SolverSettings(Settings):
    """Settings of the integration from noise to a sample."""

    solver: Annotated[Solver, PluginField(SOLVERS, Solver)] = Field(
        UniPC(), description="Solver of the sampling equation: euler, heun, dpmpp_2m or unipc."
    )
    steps: int = Field(
        25,
        ge=1,
        le=1000,
        description="Solver steps; each evaluates the model once (heun: twice), and guidance doubles the cost.",
    )
    guidance: float = Field(
        5.0,
        ge=0,
        description="Classifier-free guidance scale (Ho and Salimans 2022); 1 turns it off and halves the cost.",
    )
    guidance_low_noise: float | None = Field(
        None,
        ge=0,
        description="The scale where the expert of low noise levels predicts (`guidance_scale_2` of diffusers); by "
        "default `guidance`.",
    )
    guidance_method: Annotated[Guidance, PluginField(GUIDANCES, Guidance)] = Field(
        Plain(),
        description="Kind of guidance: plain, cfg_zero_star, apg, autoguidance with a weaker export, or embedded.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the initial noise.")
    compile: bool = Field(
        False,
        description="Compile the model's blocks by torch.compile before the first sample. It takes about a minute, so "
        "it is for many samples or long ones.",
    )

    def check_guidance(self, model: ModelSettings) -> None:
        """Raise `ValueError` if a guidance scale is to be told to a model that takes none, or to an expert of none."""
        if self.guidance_method.embedded(self.guidance) != 1 and not model.takes_guidance:
            raise ValueError(
                f"guidance_method {self.guidance_method.name}: model {model.name} is told no guidance scale; take plain"
            )
        if self.guidance_low_noise is not None and model.boundary is None:
            raise ValueError(
                f"guidance_low_noise {self.guidance_low_noise:g}: model {model.name} has no experts; set guidance alone"
            )

    def guidance_at(self, time: float, boundary: float | None) -> float:
        """Return the scale at a noise level of a model with experts on both sides of a boundary, or with none."""
        if self.guidance_low_noise is None or boundary is None or is_high_noise(time, boundary):
            return self.guidance
        return self.guidance_low_noise


class SampleSettings(TaskSettings, SolverSettings):
    """Settings of one sample. The same settings and model give the same file."""

    prompt: str = Field(min_length=1, description="Text that describes the sample.")
    negative: str | None = Field(
        None, min_length=1, description="Text to guide away from, in place of the null caption (a negative prompt)."
    )
    upsample: bool = Field(
        False, description="Make the prompt detailed first, with the settings of section `upsample`."
    )
    seconds: float = Field(
        2.0, ge=0, le=3600, description="Length in seconds, rounded to whole latent frames; 0 makes an image."
    )
    fps: float | None = Field(None, gt=0, le=240, description="Frames per second; by default those of training.")
    size: str = Field(
        "96x64", description="WIDTHxHEIGHT in pixels: multiples of a latent cell times a patch, 16 for most models."
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
    adapters: tuple[str, ...] = Field(
        (),
        description="Adapters (LoRA) that are merged into the model: a folder or a safetensors file, or FOLDER:WEIGHT "
        "for a weaker or stronger change than 1.",
    )
    other_expert: str | None = Field(
        None,
        min_length=1,
        description="Export of the other expert of a model of two; by default the published one.",
    )
    format: Literal["mp4", "gif", "webp"] = Field("mp4", description="File format of a video; an image is a png.")
    name: str | None = Field(
        None,
        pattern=r"^[\w][\w.-]*$",
        max_length=100,
        description="File name without suffix; by default made from prompt, size, seed, images and a hash of all "
        "settings.",
    )

    @field_validator("prompt", "negative", "source_prompt")
    @classmethod
    def _prompt_is_text(cls, prompt: str | None) -> str | None:
        return None if prompt is None else check_prompt(prompt)

    @field_validator("adapters")
    @classmethod
    def _adapters_are_folders(cls, adapters: tuple[str, ...]) -> tuple[str, ...]:
        parse_all(adapters)
        return adapters

    @field_validator("size")
    @classmethod
    def _size(cls, size: str) -> str:
        if not SIZE.fullmatch(size):
            raise ValueError(f"size '{size}' is not WIDTHxHEIGHT in pixels, such as 96x64")
        return size

    @field_validator("negative")
    @classmethod
    def _negative_needs_guidance(cls, negative: str | None, others: ValidationInfo) -> str | None:
        if negative is None:
            return None
        scale, method = others.data.get("guidance"), others.data.get("guidance_method")
        if scale is None or method is None:  # they have faults of their own
            return negative
        if not method.is_on(scale):
            key = "true_cfg" if method.embedded(scale) != 1 else "guidance"
            raise ValueError(f"a negative prompt has no effect with {key}: 1; raise {key}, or remove it")
        if method.weaker_export:
            raise ValueError(f"guidance_method {method.name} has no negative prompt; take plain, or remove it")
        return negative

    @field_validator("first", "last")
    @classmethod
    def _needs_a_video(cls, file: str | None, others: ValidationInfo) -> str | None:
        if file is not None and others.data.get("seconds") == 0:
            raise ValueError("only a video begins or ends with an image, and seconds: 0 makes an image; raise seconds")
        return file

    @model_validator(mode="after")
    def _one_task(self) -> SampleSettings:
        check_task(self, self.seconds, self.images())
        return self

    def check_guidance(self, model: ModelSettings) -> None:
        super().check_guidance(model)
        if self.other_expert is not None and model.boundary is None:
            raise ValueError(f"other_expert {self.other_expert}: model {model.name} has no experts; remove it")

    def check_model(self, model: ModelSettings) -> None:
        """Raise `ValueError` with the fix if a model cannot make this sample."""
        self.check_guidance(model)
        others = [key for key in (*TASKS, "last") if getattr(self, key)]
        if model.image_channels and (self.first is None or others):
            fix = f"remove {others[0]}" if others else "give first, the image that the video begins with"
            fix += " and raise seconds" * (self.seconds == 0)
            raise ValueError(f"model {model.name} makes a video of an image alone; {fix}")
        kinds = model.conditioning_kinds()
        if self.last is not None and "last" not in kinds:
            raise ValueError(f"model {model.name} cannot end a video in a given image; remove last")
        given = [key for key, is_given in self._given_frames().items() if is_given]
        if given and "first" not in kinds and not model.image_channels:
            raise ValueError(f"model {model.name} is of text to video and takes no given frames; remove {given[0]}")

    def _given_frames(self) -> dict[str, bool]:
        """Return whether settings give the model frames, by their names."""
        return {
            "first": self.first is not None,
            "extend": self.extend is not None,
            "connect": self.connect is not None,
            "loop": self.loop and self.video is not None,
            "window": self.window is not None and self.window < self.seconds,
        }

    def images(self) -> dict[str, str]:
        """Return the image files that the video begins or ends with, by `first` and `last`."""
        return {end: file for end, file in (("first", self.first), ("last", self.last)) if file is not None}

    def pixels(self) -> tuple[int, int]:
        """Return the requested width and height."""
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    def check_size(self, units: tuple[int, int]) -> None:
        """Raise `ValueError` unless width and height are multiples of these units in pixels, naming sizes that are."""
        sides = self.pixels()
        if all(side % unit == 0 for side, unit in zip(sides, units, strict=True)):
            return
        floor = [max(unit, side // unit * unit) for side, unit in zip(sides, units, strict=True)]
        ceiling = [-(-side // unit) * unit for side, unit in zip(sides, units, strict=True)]
        sizes = dict.fromkeys(f"{width}x{height}" for width, height in (floor, ceiling))
        multiples = f"multiples of {units[0]}" + (f" and {units[1]}" if units[0] != units[1] else "")
        raise ValueError(
            f"size {self.size}: width and height must be {multiples} pixels, a latent cell times a patch of the model; "
            f"take {' or '.join(sizes)}"
        )

    def stem(self) -> str:
        """Return the file name without suffix. Without `name`, other settings have another one, by the hash in it."""
        if self.name:
            return self.name
        images = "".join(f"-{end}-{_words(PurePosixPath(file).stem) or 'image'}" for end, file in self.images().items())
        images += "".join(f"-{task}" for task in TASKS if getattr(self, task))
        settings = digest(self.model_dump_json(exclude_defaults=True), size_bytes=4)
        return f"{_words(self.prompt) or 'sample'}-{self.size}-seed{self.seed}{images}-{settings}"

    def file_name(self) -> str:
        """Return the file name, with the suffix of an image or a video."""
        return f"{self.stem()}.{'png' if self.seconds == 0 else self.format}"


def _words(text: str) -> str:
    """Return text as a part of a file name: its letters, marks and digits of any script, in lower case."""
    # In one form, since some file systems do not tell composed from decomposed letters.
    text = unicodedata.normalize("NFC", text.lower())
    words = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text).split()
    start = "-".join(words).encode()[:MAX_WORDS_BYTES]
    return start.decode(errors="ignore").strip("-")
