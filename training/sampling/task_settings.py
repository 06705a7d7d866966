"""Settings of the tasks of a sample: to extend, connect, close or edit a given video, and to make long ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from cluster.config import LocatedError, Settings

TASKS = ("extend", "connect", "loop", "edit", "window")
"""Settings that each name a task of their own."""
NEED_VIDEO = ("extend", "connect", "edit")
SPAN = re.compile(r"\s*([0-9.]+)\s*-\s*([0-9.]+)\s*:\s*(\S.*)", re.DOTALL)


class PromptSpan(NamedTuple):
    """A part of a video with a prompt of its own, in seconds."""

    start: float
    end: float
    prompt: str


class TaskSettings(Settings):
    """Settings of what is made of a given video, and of long videos; by default a new short one is made."""

    video: str | None = Field(
        None,
        min_length=1,
        description="Video file to extend, connect, close into a loop or edit, scaled to cover `size` and cropped "
        "around its centre. `heron.mp4#t=2,5` is its part from 2 to 5 seconds.",
    )
    extend: Literal["forward", "backward"] | None = Field(
        None, description="Extend `video` by `seconds`: forward with frames after it, backward with frames before it."
    )
    connect: str | None = Field(
        None, min_length=1, description="Video file that follows `video`, with `seconds` of new frames between the two."
    )
    loop: bool = Field(
        False,
        description="Make a video of `seconds` that repeats without a seam; with `video`, close that one into a loop "
        "by `seconds` of new frames.",
    )
    edit: Literal["sdedit", "flowedit"] | None = Field(
        None,
        description="Change the first `seconds` of `video` to fit the prompt: sdedit generates them again from noise "
        "of `strength`, flowedit follows the difference between `source_prompt` and prompt.",
    )
    strength: float = Field(
        0.7, gt=0, le=1, description="Share of the solver's steps of an edit: more changes more, 1 all for sdedit."
    )
    source_prompt: str | None = Field(None, min_length=1, description="Text that describes `video`, for flowedit.")
    window: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Make a long video in overlapping windows of this length in seconds, best the longest of training.",
    )
    context: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Seconds of each given video, or of the window before, that the model sees; the overlap of a new "
        "loop with itself.",
    )
    context_noise: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Noise level at which it sees them: up to `conditioning_noise` of its training.",
    )
    spans: tuple[str, ...] = Field(
        (),
        description="Parts with prompts of their own, in seconds, such as '4-8: A blue square spins.'; the prompt "
        "holds elsewhere.",
    )

    @field_validator("spans")
    @classmethod
    def _spans_follow_each_other(cls, spans: tuple[str, ...]) -> tuple[str, ...]:
        parsed = sorted(parse_span(span) for span in spans)
        for before, after in itertools.pairwise(parsed):
            if after.start < before.end:
                raise ValueError(
                    f"spans {before.start:g}-{before.end:g} and {after.start:g}-{after.end:g} overlap; "
                    "end one where the other begins"
                )
        return spans

    def prompt_spans(self) -> list[PromptSpan]:
        """Return the spans in the sequence of time."""
        return sorted(parse_span(span) for span in self.spans)

    def videos(self) -> dict[str, str]:
        """Return the given video files, by `video` and `connect`."""
        return {key: file for key, file in (("video", self.video), ("connect", self.connect)) if file is not None}


def parse_span(text: str) -> PromptSpan:
    """Return a span from text such as '4-8: A blue square spins.'. Raises `ValueError` for other text."""
    match = SPAN.fullmatch(text)
    try:
        start, end = (float(match[index]) for index in (1, 2)) if match else (0.0, 0.0)
    except ValueError:
        start = end = 0.0
    if not match or start >= end:
        raise ValueError(
            f"'{text[:80]}' is not a part with its prompt; write its first and last second, '4-8: A blue square spins.'"
        )
    return PromptSpan(start, end, match[3].strip())


def check_task(settings: TaskSettings, seconds: float, images: Iterable[str]) -> None:
    """Raise `LocatedError` for settings of tasks that do not go together, naming the fix.

    `seconds` is the length of the sample, and `images` are the ends (`first`, `last`) that have conditioning images.
    """
    tasks = [key for key in TASKS if getattr(settings, key)]
    task = tasks[0] if tasks else None
    if len(tasks) > 1:
        raise LocatedError((tasks[1],), f"{tasks[0]} and {tasks[1]} are two tasks; remove one of them")
    if task in NEED_VIDEO and settings.video is None:
        raise LocatedError((task,), f"{task} needs a video; name its file with video")
    if settings.video is not None and task not in (*NEED_VIDEO, "loop"):
        raise LocatedError(("video",), "nothing is to be done with the video; add extend, connect, loop or edit")
    if task and seconds == 0:
        raise LocatedError(("seconds",), f"seconds: 0 makes an image of 1 frame, and {task} needs a length; raise it")
    for end in images:
        if task and (task, end) != ("window", "first"):
            raise LocatedError((end,), f"{end} is an image of a sample without {task}; remove one of them")
    _check_edit(settings)
    _check_spans(settings, task, seconds)
    _check_context(settings, task)


def _check_edit(settings: TaskSettings) -> None:
    if settings.edit == "flowedit" and settings.source_prompt is None:
        raise LocatedError(("edit",), "flowedit needs source_prompt, a text that describes the video; or take sdedit")
    if settings.edit != "flowedit" and settings.source_prompt is not None:
        raise LocatedError(("source_prompt",), "source_prompt is for edit: flowedit; add that, or remove it")
    if settings.edit is None and _is_set(settings, "strength"):
        raise LocatedError(("strength",), "strength is that of an edit; add edit, or remove it")


def _check_spans(settings: TaskSettings, task: str | None, seconds: float) -> None:
    if not settings.spans:
        return
    if task not in (None, "window") or seconds == 0:
        raise LocatedError(
            ("spans",), f"spans are parts of a new video, and {task or 'an image'} has one prompt; remove spans"
        )
    last = settings.prompt_spans()[-1]
    if last.start >= seconds:
        raise LocatedError(
            ("spans",), f"span {last.start:g}-{last.end:g} begins after the video, which has {seconds:g} seconds"
        )


def _check_context(settings: TaskSettings, task: str | None) -> None:
    for key in ("context", "context_noise"):
        if task in (None, "edit") and _is_set(settings, key):
            raise LocatedError((key,), f"{key} has no effect without extend, connect, loop or window; remove it")
    if settings.window is not None and settings.context >= settings.window:
        raise LocatedError(
            ("context",), f"context {settings.context:g} is not shorter than window {settings.window:g}; lower it"
        )


def _is_set(settings: TaskSettings, key: str) -> bool:
    return bool(getattr(settings, key) != TaskSettings.model_fields[key].default)
