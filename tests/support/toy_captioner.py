"""A captioner that logs every question to a file, and a step that gives clips images without any video."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from PIL import Image
from pydantic import Field

from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError, Question
from cluster.resources import Resources
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.steps.frames import FRAME_TIMES_S, FRAMES
from tests.support.toy_recipes import logged_calls
from tests.support.toy_steps import log_call

COST_USD = 0.25
"""Cost of each answer of `Counting`."""


class Counting(CaptionerSettings):
    """Settings of a captioner that names the clip whose images it got, and `says` what lies on the sea there.

    At `max_answers` logged answers it kills its process or raises, as `at_limit` says.
    """

    name: str = "counting"
    says: str = "a boat"
    calls: str = Field("", exclude=True)
    max_answers: int | None = Field(None, exclude=True)
    at_limit: Literal["kill", "raise"] = Field("kill", exclude=True)
    budget_usd: float | None = Field(None, exclude=True)
    busy_for: int = Field(0, ge=0, exclude=True)
    """Number of questions that get no answer at first, as from a server that is busy."""

    def identity(self) -> str:
        return f"counting-{self.says}"

    def resources(self) -> Resources:
        return Resources(cpus=1.0, max_workers=1)

    def open(self) -> Captioner:
        return CountingCaptioner(self)


class CountingCaptioner(Captioner):
    """The captioner of `Counting`."""

    def __init__(self, settings: Counting) -> None:
        self._settings = settings
        self._spent_usd = 0.0
        self._n_refused = 0

    def restore_spent_usd(self, usd: float) -> None:
        self._spent_usd = usd

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        settings = self._settings
        for question in questions:
            if self._n_refused < settings.busy_for:
                self._n_refused += 1
                yield Answer(question.key, question.uid, error="HTTP 503: busy (after 6 attempts)", may_pass=True)
                continue
            if settings.max_answers is not None and len(logged_calls(settings.calls)) >= settings.max_answers:
                if settings.at_limit == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise EngineError("the server is gone: start it and run again")
            if settings.budget_usd is not None and self._spent_usd + COST_USD > settings.budget_usd:
                raise EngineError(f"budget of ${settings.budget_usd:g} reached")
            self._spent_usd += COST_USD
            log_call(settings.calls, question.uid)
            yield Answer(
                question.key, question.uid, self._text(question), tokens_in=100, tokens_out=20, cost_usd=COST_USD
            )

    def _text(self, question: Question) -> str:
        names = list((question.json_schema or {"properties": {}})["properties"])
        shown = question.images[0].decode(errors="replace") if question.images else question.text
        found = re.search(r"clip ([0-9a-f]{20})", shown)
        uid = found[1] if found else question.uid
        caption = f"caption of clip {uid}, in which {self._settings.says} lies on the sea"
        return json.dumps({name: f"A {name} {caption}." for name in names}) if names else f"A {caption}."


class ToyFrames(Step):
    """A step in place of `frames`: JPEG images whose comment names their clip.

    The images of clips whose number is in `damaged` are cut off in the middle.
    """

    name: str = "toy_frames"
    n_images: int = 3
    damaged: tuple[float, ...] = ()
    calls: str = Field("", exclude=True)

    def reads(self) -> tuple[str, ...]:
        return ("number",)

    def writes(self) -> tuple[pa.Field, ...]:
        return FRAMES, FRAME_TIMES_S, column("camera", pa.string(), ""), column("source_caption", pa.string(), "")

    def open(self, context: Context) -> TableFunction:
        def take(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, row["uid"])
            image = clip_jpeg(row["uid"])
            return {
                "frames": [image[: len(image) // 2] if row["number"] in self.damaged else image] * self.n_images,
                "frame_times_s": [float(i) for i in range(self.n_images)],
                "camera": "pan",
                "source_caption": f"hint of clip {row['uid']}" if row["number"] == 0 else None,
            }

        return lambda table: map_rows(table, self.writes(), take)


def clip_jpeg(uid: str) -> bytes:
    """Return a small JPEG file whose comment names a clip."""
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).save(sink, "JPEG", comment=f"clip {uid}".encode())
    return sink.getvalue()
