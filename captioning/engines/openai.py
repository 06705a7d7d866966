"""Engine `openai`: any server with OpenAI's chat completions API, such as `vllm serve` or a hosted one.

The HTTP client is aiohttp: Ray's dashboard already requires it, its own organisation maintains it, and one thread with
one event loop holds any number of requests. OpenAI's own package would add its own retries and time-outs, and
exceptions that carry the request with its API key. This module needs control over all three, because they decide what
is paid twice.

A request that timed out or lost its connection may have been charged although no usage came back. It counts as charged
at its largest possible cost, and the cost of its retry is added.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)

from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError, Question
from captioning.engines._images import chat_items
from captioning.engines._limits import Limits
from captioning.engines._replies import Failure, FailureKind, Reply, read_reply
from captioning.engines._schedule import Attempt, Schedule
from cluster import storage
from cluster.resources import Resources

VERSION = 1

RESERVED_FIELDS = frozenset({"messages", "model", "n", "stream", "max_tokens", "max_completion_tokens"})
"""Fields of a request that `extra` may not set."""
CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 4.0
"""Seconds after which idle connections are closed. uvicorn, and so vLLM, closes them after 5 s, which would drop a
request that was just sent."""
MIN_SECRET_CHARACTERS = 8
"""Smallest length of an API key that is removed from messages and captions. Shorter ones ('EMPTY', 'none') are no
secrets, and may be words of a caption."""
MAX_REPLY_BYTES = 16 << 20
"""Largest body of a reply that is read. An answer of 32,768 tokens, the most that a prompt asks for, has 200 kB."""
MAX_MESSAGE_CHARACTERS = 300
"""Largest length of the server's message in the reason of a failure."""


class OpenAI(CaptionerSettings):
    """A captioner behind a server. Requests carry the images as base64.

    A run has one worker with this engine, so that its rate limits and its budget hold for the whole run.
    """

    # A key that was written in place of the name of its variable must not be repeated in an error.
    model_config = ConfigDict(hide_input_in_errors=True)

    name: str = "openai"
    base_url: str = Field(
        description="Address with /v1, as http://localhost:8000/v1; /chat/completions is added. Images are sent to it."
    )
    model: str = Field(min_length=1, description="Name of the model on the server.")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="Environment variable with the API key; empty for a server without keys."
    )
    concurrency: PositiveInt = Field(
        32, description="Largest number of requests in flight. Each holds its images in memory."
    )
    requests_per_minute: PositiveFloat | None = Field(None, description="Largest request rate; null: no limit.")
    tokens_per_minute: PositiveFloat | None = Field(
        None,
        description=(
            "Largest rate of prompt and answer tokens, with max_tokens counted until an answer is complete; "
            "null: no limit."
        ),
    )
    timeout_s: PositiveFloat = Field(300.0, description="Time limit of one request, from connecting to the last byte.")
    retries: NonNegativeInt = Field(
        5,
        description="How often a question is asked again after a time-out, a dropped connection, 408, 409, 429 or 5xx.",
    )
    price_in: NonNegativeFloat = Field(0.0, description="USD per million tokens of prompts, images included.")
    price_out: NonNegativeFloat = Field(0.0, description="USD per million tokens of answers.")
    budget_usd: PositiveFloat | None = Field(
        None, description="Largest total cost, earlier runs included; a question that may exceed it is not asked."
    )
    inputs: Literal["images", "video"] = Field(
        "images",
        description=(
            "Send images one by one, or together as one video_url of type video/jpeg, "
            "which vLLM reads as a video of 2 frames per second."
        ),
    )
    detail: Literal["low", "high", "auto"] | None = Field(
        None, description="Level of detail at which a hosted model reads each image; null does not send it."
    )
    guided: bool = Field(
        True, description="Send the JSON schema of the prompt as response_format; false for servers that refuse it."
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Name of the field for the token limit; newer hosted models accept only the second."
    )
    extra: Mapping[str, Any] = Field(
        {}, description="More fields of the request, as chat_template_kwargs; null removes a field, as seed."
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write base_url with http:// or https:// and a host, as in http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "base_url takes no user, password, query or fragment; "
                "put the API key into the environment variable that api_key_env names"
            )
        if parts.path.rstrip("/").endswith("/chat/completions"):
            raise ValueError("remove /chat/completions from base_url: it is added")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError(
                "write the name of the environment variable that holds the key, such as OPENAI_API_KEY, "
                "never the key itself"
            )
        return value

    @field_validator("extra")
    @classmethod
    def _sets_no_reserved_field(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if reserved := sorted(RESERVED_FIELDS & value.keys()):
            raise ValueError(f"extra cannot set {', '.join(reserved)}: the engine does")
        return value

    @model_validator(mode="after")
    def _budget_has_prices(self) -> Self:
        if self.budget_usd is not None and not (self.price_in or self.price_out):
            raise ValueError("budget_usd needs price_in and price_out, in USD per million tokens")
        return self

    def identity(self) -> str:
        chosen = {"inputs": self.inputs, "detail": self.detail, "guided": self.guided, "extra": self.extra}
        return f"openai-v{VERSION} {self.model} {storage.digest(json.dumps(chosen, sort_keys=True), size_bytes=4)}"

    def resources(self) -> Resources:
        return Resources(cpus=0.5, max_workers=1)

    def open(self) -> Captioner:
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if self.api_key_env and not re.fullmatch(r"[!-~]+", key):
            fault = "is not set where the captioning worker runs" if not key else "holds characters that no key has"
            raise EngineError(
                f"the environment variable {self.api_key_env} {fault}; set it there, "
                "or write api_key_env: '' for a server without keys"
            )
        return OpenAICaptioner(self, SecretStr(key))

    def request(self, question: Question) -> dict[str, Any]:
        """Return the body of a request: the images in order, then the text."""
        images = chat_items(question.images, self.inputs == "video", self.detail)
        content = [*images, {"type": "text", "text": question.text}] if images else question.text
        system: list[dict[str, Any]] = [{"role": "system", "content": question.system}] if question.system else []
        body = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": content}],
            self.max_tokens_field: question.max_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
        }
        if self.guided and question.json_schema:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": question.json_schema},
            }
        return {name: value for name, value in {**body, **self.extra}.items() if value is not None}


class Clock:
    """The clock of the captioner; tests replace it."""

    def now_s(self) -> float:
        """Return the time in seconds from an arbitrary start."""
        return time.monotonic()

    def date(self) -> datetime:
        """Return the date and time."""
        return datetime.now(UTC)

    async def wait(self, tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
        """Wait until one of the tasks is done, or until the seconds are over, which may be infinite."""
        timeout = None if seconds == math.inf else seconds
        if tasks:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        else:
            assert timeout is not None, "nothing to wait for"
            await asyncio.sleep(timeout)


class OpenAICaptioner(Captioner):
    """A captioner that sends requests in a thread.

    Its limits and costs apply across calls of `answer`, of which only one may be active.
    """

    def __init__(self, settings: OpenAI, key: SecretStr, clock: Clock | None = None) -> None:
        self._settings, self._key, self._clock = settings, key, clock or Clock()
        self._limits = Limits(
            settings.concurrency,
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.price_in,
            settings.price_out,
            settings.budget_usd,
        )
        self._busy = threading.Lock()

    def restore_spent_usd(self, usd: float) -> None:
        self._limits.spent_usd = max(self._limits.spent_usd, usd)

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Yield answers as `Captioner.answer` does. Closing the iterator cancels the requests in flight."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("an earlier call of `answer` is still active; exhaust or close its iterator first")
        results: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
        cancels: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

        async def ask() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            cancels.put(lambda: loop.call_soon_threadsafe(task.cancel))
            await self._ask_all(questions, results.put)

        def work() -> None:
            try:
                asyncio.run(ask())
                results.put(None)
            except BaseException as error:
                results.put(error)
            finally:
                cancels.put(lambda: None)

        thread = threading.Thread(target=work, name="openai-captioner", daemon=True)
        try:
            thread.start()
            while (item := results.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            if thread.ident is not None:
                with contextlib.suppress(RuntimeError):  # the event loop is already closed
                    cancels.get()()
                thread.join()
            self._limits.abandon()
            self._busy.release()

    async def _ask_all(self, questions: Sequence[Question], emit: Callable[[Answer | BaseException], None]) -> None:
        """Send requests as the schedule says, and emit the answers, and the error that stopped the schedule last."""
        settings, schedule = self._settings, Schedule(questions, self._limits, self._settings.retries)
        in_flight: dict[asyncio.Task[Reply | Failure], Attempt] = {}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        connect_timeout_s = min(CONNECT_TIMEOUT_S, settings.timeout_s)
        timeout = aiohttp.ClientTimeout(total=settings.timeout_s, sock_connect=connect_timeout_s)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers()) as session:
            try:
                while (step := schedule.next(self._clock.now_s())) is not None:
                    if isinstance(step, Attempt):
                        in_flight[asyncio.create_task(self._ask(session, step.question))] = step
                        continue
                    await self._clock.wait(list(in_flight), step)
                    for task in [task for task in in_flight if task.done()]:
                        for answer in schedule.end(in_flight.pop(task), task.result(), self._clock.now_s()):
                            emit(answer)
            finally:
                for task in in_flight:
                    task.cancel()
                await asyncio.gather(*in_flight, return_exceptions=True)
        if schedule.stopped:
            emit(schedule.stopped)

    async def _ask(self, session: aiohttp.ClientSession, question: Question) -> Reply | Failure:
        """Send one request and return its outcome, without the API key in it."""
        outcome = await self._post(session, json.dumps(self._settings.request(question)).encode())
        if isinstance(outcome, Reply):
            return dataclasses.replace(outcome, text=self._without_key(outcome.text))
        reason = self._without_key(outcome.reason)[:MAX_MESSAGE_CHARACTERS]
        return dataclasses.replace(outcome, reason=self._with_advice(outcome.kind, reason))

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> Reply | Failure:
        settings = self._settings
        url = f"{settings.base_url}/chat/completions"
        try:
            # A redirect is not followed: it would send key and images to an address that nobody configured.
            async with session.post(url, data=io.BytesIO(body), proxy=_proxy(url), allow_redirects=False) as response:
                reply = await _read_bounded(response.content)
                if reply is None:
                    reason = f"the reply has more than {MAX_REPLY_BYTES:,} bytes"
                    return Failure(FailureKind.TRANSIENT, reason, maybe_charged=True)
                return read_reply(response.status, response.headers, reply, self._clock.date())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            reason = f"{settings.base_url}: {type(error).__name__}: {error}"
            return Failure(FailureKind.TRANSIENT, reason, unreachable=True)
        except TimeoutError:
            reason = f"TimeoutError: no answer within {settings.timeout_s:g} s (timeout_s)"
            return Failure(FailureKind.TRANSIENT, reason, maybe_charged=True)
        except (aiohttp.ClientError, OSError) as error:
            return Failure(FailureKind.TRANSIENT, f"{type(error).__name__}: {error}", maybe_charged=True)

    def _with_advice(self, kind: FailureKind, reason: str) -> str:
        """Return the reason, with the fix if the failure concerns all questions."""
        settings, again = self._settings, "run again: nothing is asked twice"
        if kind is FailureKind.API_KEY:
            # Without the server's message: servers repeat the key there, whole or in part.
            variable = (
                f"the environment variable {settings.api_key_env}"
                if settings.api_key_env
                else "api_key_env, which is empty"
            )
            return f"{settings.base_url} refuses the key ({reason.partition(':')[0]}); check {variable}, and {again}"
        advice = {
            FailureKind.NO_CREDIT: f"{settings.base_url} says that the account has no credit left ({reason}); "
            f"add credit and {again}",
            FailureKind.UNKNOWN_MODEL: f"{settings.base_url} has no model '{settings.model}' ({reason}); "
            "check engine.model",
            FailureKind.WRONG_ADDRESS: f"{settings.base_url}/chat/completions does not exist ({reason}); "
            "check engine.base_url, which usually ends in /v1",
        }
        return advice.get(kind, reason)

    def _headers(self) -> dict[str, str]:
        key = self._key.get_secret_value()
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def _without_key(self, text: str) -> str:
        key = self._key.get_secret_value()
        return text.replace(key, "[key]") if len(key) >= MIN_SECRET_CHARACTERS else text


async def _read_bounded(content: aiohttp.StreamReader) -> bytes | None:
    """Return the body of a reply, or None if it is longer than `MAX_REPLY_BYTES`."""
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            return None
    return bytes(body)


def _proxy(url: str) -> str | None:
    """Return the proxy for a URL from the environment, or None.

    aiohttp's own lookup would also read passwords from ~/.netrc, and refuse one beside an API key.
    """
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
