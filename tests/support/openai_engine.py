"""Engine openai against the misbehaving server: questions, captioners with a virtual clock, and checks of answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from captioning.engine import Answer, EngineError, Question
from captioning.engines.openai import Clock, OpenAI, OpenAICaptioner
from tests.support.misbehaving_server import Act, Server, completion, error

KEY = "sk-test-Zm9vYmFyYmF6cXV4Cg"
DATE = datetime(2030, 5, 1, 12, tzinfo=UTC)

TRANSIENT_ACTS = {
    "408": Act(408, error("slow client")),
    "409": Act(409, error("conflict")),
    "429": Act(429, error("too many")),
    "500": Act(500, error("oops")),
    "502 in HTML": Act(502, b"<html>bad gateway</html>"),
    "503": Act(503, error("busy"), {"Retry-After": "3"}),
    "dropped": Act(drop="before"),
    "cut off": Act(drop="middle"),
    "cut off in chunks": Act(drop="middle", chunked=True),
    "not JSON": Act(body=b"hello"),
    "a list": Act(body=b"[1, 2]"),
    "deep": Act(body=b"[" * 100_000),
    "no choices": Act(body={"choices": []}),
    "null choice": Act(body={"choices": [None]}),
    "null content": Act(body=completion(None)),
    "aborted": Act(body=completion("half an ans", finish_reason="abort")),
    "error with 200": Act(body=error("upstream went away")),
    "503 with 200": Act(body=error("upstream went away", code=503)),
    "wrong encoding": Act(body=b"x", headers={"Content-Encoding": "gzip"}),
}
"""Acts after which a question is asked again, by name."""

QUESTION_ACTS = {
    "400": (Act(400, error("bad image")), "HTTP 400: bad image"),
    "404": (Act(404, error("No endpoints found that support image input")), "HTTP 404: No endpoints"),
    "413": (Act(413, b"too large"), "HTTP 413: too large"),
    "422": (Act(422, {"detail": [{"msg": "no"}]}), "HTTP 422"),
    "flagged": (Act(403, error("moderated", metadata={"flagged_input": "x"})), "HTTP 403: moderated"),
    "400 of old vLLM": (
        Act(400, {"object": "error", "message": "too many images", "code": 400}),
        "HTTP 400: too many images",
    ),
    "400 with 200": (Act(body=error("no", code=400)), "HTTP 400: no"),
    "filtered": (Act(body=completion(None, finish_reason="content_filter")), "the content filter of the server"),
}
"""Acts that fail one question without a retry, and the beginning of the error, by name."""


class VirtualClock(Clock):
    """A clock whose waits take no time: if no request ends within 20 ms, the clock is advanced."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def date(self) -> datetime:
        return DATE

    async def wait(self, tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
        timeout_s = None if seconds == math.inf else 0.02
        done, _ = (
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED) if tasks else (set(), ())
        )
        if not done:
            self.time_s += seconds


def question(text: str, **fields: Any) -> Question:
    """Return a question whose key and uid follow from its text."""
    return Question(f"key of {text}", f"uid of {text}", text, **{"max_tokens": 50, **fields})


def captioner(server: Server, clock: Clock | None = None, **fields: Any) -> OpenAICaptioner:
    """Return a captioner for a server, with some settings changed."""
    settings = OpenAI(
        base_url=server.base_url, model="a-model", **{"concurrency": 4, "retries": 3, "timeout_s": 10.0, **fields}
    )
    return OpenAICaptioner(settings, SecretStr(KEY), clock or VirtualClock())


def answer_texts(answers: Sequence[Answer]) -> dict[str, str]:
    """Return the text of each answer by that of its question; check that no question is answered twice."""
    asked = [answer.key.removeprefix("key of ") for answer in answers]
    assert len(asked) == len(set(asked)), "answered twice"
    assert all(answer.uid == f"uid of {text}" for answer, text in zip(answers, asked, strict=True))
    return {text: answer.text for text, answer in zip(asked, answers, strict=True)}


def expected_texts(questions: Sequence[str]) -> dict[str, str]:
    """Return the texts of the normal replies to questions with these texts."""
    return {text: f"answer to {text}" for text in questions}


def answers_before_error(engine: OpenAICaptioner, questions: Sequence[Question]) -> tuple[list[Answer], EngineError]:
    """Return the answers that a captioner yields before it raises an `EngineError`, and the error."""
    answers: list[Answer] = []
    with pytest.raises(EngineError) as raised:
        answers.extend(engine.answer(questions))
    return answers, raised.value
