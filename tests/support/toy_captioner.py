"""A captioner that logs every question to a file, and steps that give it clips with pictures without any video."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError, Question
from cluster.resources import Resources
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.steps.frames import FRAMES, FRAME_TIMES_S
from tests.support.toy_steps import log_call

COST_USD = 0.25


class Counting(CaptionerSettings):
    """Says which clip it saw. After `most_answers` logged answers it kills its process, or gives up."""

    name: str = "counting"
    says: str = "a boat"
    calls: str = Field("", exclude=True)
    most_answers: int | None = Field(None, exclude=True)
    ends_by: str = Field("kill", exclude=True)
    budget_usd: float | None = Field(None, exclude=True)

    def identity(self) -> str:
        return f"counting-{self.says}"

    def resources(self) -> Resources:
        return Resources(cpus=1.0, max_workers=1)

    def open(self) -> Captioner:
        return CountingCaptioner(self)


class CountingCaptioner(Captioner):
    def __init__(self, settings: Counting) -> None:
        self._settings = settings
        self._spent_usd = 0.0

    def restore_spent_usd(self, usd: float) -> None:
        self._spent_usd = usd

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        settings = self._settings
        for question in questions:
            if settings.most_answers is not None and len(calls_of(settings.calls)) >= settings.most_answers:
                if settings.ends_by == "kill":
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
        caption = (
            f"caption of clip {found[1] if found else question.uid}, in which {self._settings.says} lies on the sea"
        )
        return json.dumps({name: f"A {name} {caption}." for name in names}) if names else f"A {caption}."


class Look(Step):
    """Stands for `frames`: pictures that say which clip they are of."""

    name: str = "look"
    pictures: int = 3
    calls: str = Field("", exclude=True)

    def reads(self) -> tuple[str, ...]:
        return ("number",)

    def writes(self) -> tuple[pa.Field, ...]:
        return FRAMES, FRAME_TIMES_S, column("camera", pa.string(), ""), column("source_caption", pa.string(), "")

    def open(self, context: Context) -> TableFunction:
        def look(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, row["uid"])
            pictures = [f"picture {i} of clip {row['uid']}".encode() for i in range(self.pictures)]
            hint = f"hint of clip {row['uid']}" if row["number"] == 0 else None
            return {
                "frames": pictures,
                "frame_times_s": [float(i) for i in range(self.pictures)],
                "camera": "pan",
                "source_caption": hint,
            }

        return lambda table: map_rows(table, self.writes(), look)


def calls_of(path: str) -> list[str]:
    return Path(path).read_text().split() if Path(path).exists() else []
