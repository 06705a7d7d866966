"""Captions by any server that speaks OpenAI's chat completions: `vllm serve` on a machine of one's own, or a hosted one.

The client is aiohttp: Ray's dashboard brings it along anyway, it is kept up by its own organisation, and one thread with one event loop
holds any number of requests. OpenAI's own package would add its retries, its time-outs and its exceptions, which carry the request
with its key; all three have to be ours here, because they decide what is paid twice.

A request that timed out or was cut off may have been charged although no usage came back. It is counted as if charged in full, that is for
the most it could take, and what its retry costs is added to that.
"""

from __future__ import annotations

import asyncio
import base64
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
from captioning.engines._limits import Limits
from captioning.engines._replies import Failure, Fault, Reply, read
from captioning.engines._schedule import Schedule, Try
from cluster import storage
from cluster.resources import Resources

VERSION = 1

OURS = frozenset({"messages", "model", "n", "stream", "max_tokens", "max_completion_tokens"})
"""Fields of a request that `extra` may not set."""
CONNECT_S = 10.0
KEEP_ALIVE_S = 4.0
"""Idle connections are closed before uvicorn, and with it vLLM, would close them after 5 s, under a request that is on its way."""
SECRET_CHARS = 8
"""A shorter key ('EMPTY', 'none') is no secret, and may well be a word of a caption."""
MESSAGE_CHARS = 300
"""Of what a server says about a fault, this much is passed on."""


class OpenAI(CaptionerSettings):
    """Pictures go to the server as base64 in the request. There is one worker, so that its limits and budget are those of the whole run."""

    # A key that was written where its variable's name belongs is not to be repeated in an error.
    model_config = ConfigDict(hide_input_in_errors=True)

    name: str = "openai"
    base_url: str = Field(
        description="Address up to and with /v1, say http://localhost:8000/v1: /chat/completions is added. The pictures are sent there."
    )
    model: str = Field(min_length=1, description="As the server calls it.")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key; empty for a server that wants none."
    )
    concurrency: PositiveInt = Field(32, description="Requests in flight at most. Each holds its pictures in memory.")
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = Field(
        None, description="Of prompts and answers together, with max_tokens counted until an answer is there."
    )
    timeout_s: PositiveFloat = Field(300.0, description="For one request, from the connection to the last byte.")
    retries: NonNegativeInt = Field(
        5,
        description="How often a question is asked again after a time-out, a dropped connection, 408, 409, 429 or 5xx.",
    )
    price_in: NonNegativeFloat = Field(0.0, description="USD per million tokens of a prompt, pictures included.")
    price_out: NonNegativeFloat = Field(0.0, description="USD per million tokens of an answer.")
    budget_usd: PositiveFloat | None = Field(
        None, description="Nothing is asked that could cost more than this in all, earlier runs included."
    )
    inputs: Literal["images", "video"] = Field(
        "images",
        description="Pictures one by one, or together as one video_url of type video/jpeg, which vLLM reads, as a video of 2 pictures a second.",
    )
    detail: Literal["low", "high", "auto"] | None = Field(
        None, description="How closely a hosted model looks at each picture; not sent if empty."
    )
    guided: bool = Field(
        True, description="Send a prompt's JSON schema as response_format. False for servers that refuse it."
    )
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Newer hosted models know only the second."
    )
    extra: Mapping[str, Any] = Field(
        {}, description="More fields of the request, say chat_template_kwargs; null takes one out, say seed."
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write base_url with http:// or https:// and a host, as in http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "base_url takes no user, password, query or fragment; the key belongs into the variable that api_key_env names"
            )
        if parts.path.rstrip("/").endswith("/chat/completions"):
            raise ValueError("leave /chat/completions off base_url: it is added")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError(
                "write the name of the environment variable that holds the key, say OPENAI_API_KEY, never the key itself"
            )
        return value

    @field_validator("extra")
    @classmethod
    def _leaves_ours(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if taken := sorted(OURS & value.keys()):
            raise ValueError(f"extra cannot set {', '.join(taken)}: the engine does")
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
                f"the environment variable {self.api_key_env} {fault}; set it there, or write api_key_env: '' for a server without keys"
            )
        return OpenAICaptioner(self, SecretStr(key))

    def request(self, question: Question) -> dict[str, Any]:
        """The body of a request: pictures in their order, then the words."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": question.system}] if question.system else []
        content = (
            [*self._pictures(question.images), {"type": "text", "text": question.text}]
            if question.images
            else question.text
        )
        body = {
            "model": self.model,
            "messages": [*messages, {"role": "user", "content": content}],
            self.limit_field: question.max_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
        }
        if self.guided and question.json_schema:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": question.json_schema},
            }
        return {name: value for name, value in {**body, **self.extra}.items() if value is not None}

    def _pictures(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        encoded = [base64.b64encode(picture).decode() for picture in images]
        if self.inputs == "video" and len(encoded) > 1:
            return [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(encoded)}"}}]
        detail = {"detail": self.detail} if self.detail else {}
        return [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}", **detail}}
            for picture in encoded
        ]


class Clock:
    """The time, and waiting for it; tests have one of their own."""

    def now_s(self) -> float:
        return time.monotonic()

    def date(self) -> datetime:
        return datetime.now(UTC)

    async def wait(self, tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
        """Until one of the tasks is done, or the seconds are over, which may be infinite."""
        timeout = None if seconds == math.inf else seconds
        if tasks:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        else:
            assert timeout is not None, "nothing to wait for"
            await asyncio.sleep(timeout)


class OpenAICaptioner(Captioner):
    """See `OpenAI`. Rates, pauses, and what is spent go on from one call of `answer` to the next; only one may be under way."""

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
        """All that is known to have been paid for these answers so far, by earlier runs and this one; it counts towards the budget."""
        self._limits.spent_usd = max(self._limits.spent_usd, usd)

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """See `Captioner.answer`. The requests are made in a thread; closing the iterator cancels those in flight and ends it."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "the last answers of this engine are still under way; read them to the end or close them"
            )
        found: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
        cancels: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

        async def ask() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            cancels.put(lambda: loop.call_soon_threadsafe(task.cancel))
            await self._ask_all(questions, found.put)

        def work() -> None:
            try:
                asyncio.run(ask())
                found.put(None)
            except BaseException as error:
                found.put(error)
            finally:
                cancels.put(lambda: None)

        thread = threading.Thread(target=work, name="openai-captioner", daemon=True)
        try:
            thread.start()
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            if thread.ident is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed already
                    cancels.get()()
                thread.join()
            self._limits.abandon()
            self._busy.release()

    async def _ask_all(self, questions: Sequence[Question], emit: Callable[[Answer | BaseException], None]) -> None:
        settings, schedule = self._settings, Schedule(questions, self._limits, self._settings.retries)
        flying: dict[asyncio.Task[Reply | Failure], Try] = {}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        timeout = aiohttp.ClientTimeout(total=settings.timeout_s, sock_connect=min(CONNECT_S, settings.timeout_s))
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers()) as session:
            try:
                while (step := schedule.next(self._clock.now_s())) is not None:
                    if isinstance(step, Try):
                        flying[asyncio.create_task(self._ask(session, step.question))] = step
                        continue
                    await self._clock.wait(list(flying), step)
                    for task in [task for task in flying if task.done()]:
                        for answer in schedule.end(flying.pop(task), task.result(), self._clock.now_s()):
                            emit(answer)
            finally:
                for task in flying:
                    task.cancel()
                await asyncio.gather(*flying, return_exceptions=True)
        if schedule.stopped:
            emit(schedule.stopped)

    async def _ask(self, session: aiohttp.ClientSession, question: Question) -> Reply | Failure:
        url, body = f"{self._settings.base_url}/chat/completions", json.dumps(self._settings.request(question)).encode()
        try:
            # Not followed: a redirect would carry key and pictures to where nobody sent them.
            async with session.post(url, data=io.BytesIO(body), proxy=_proxy(url), allow_redirects=False) as response:
                outcome = read(response.status, response.headers, await response.read(), self._clock.date())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            outcome = Failure(
                Fault.RETRY, f"{self._settings.base_url}: {type(error).__name__}: {error}", unreachable=True
            )
        except TimeoutError:
            outcome = Failure(
                Fault.RETRY,
                f"TimeoutError: no answer within {self._settings.timeout_s:g} s (timeout_s)",
                maybe_charged=True,
            )
        except (aiohttp.ClientError, OSError) as error:
            outcome = Failure(Fault.RETRY, f"{type(error).__name__}: {error}", maybe_charged=True)
        if isinstance(outcome, Reply):
            return dataclasses.replace(outcome, text=self._scrubbed(outcome.text))
        return dataclasses.replace(
            outcome, reason=self._advice(outcome.fault, self._scrubbed(outcome.reason)[:MESSAGE_CHARS])
        )

    def _advice(self, fault: Fault, reason: str) -> str:
        """The reason, with what to do where all questions would meet the same."""
        settings, again = self._settings, "run again: nothing is asked twice"
        if fault is Fault.KEY:
            # The server's words stay out: servers repeat the key here, whole or in part.
            where = (
                f"the environment variable {settings.api_key_env}"
                if settings.api_key_env
                else "api_key_env, which is empty"
            )
            return f"{settings.base_url} refuses the key ({reason.partition(':')[0]}); check {where}, and {again}"
        advice = {
            Fault.CREDIT: f"{settings.base_url} says that the account has nothing left ({reason}); add to it and {again}",
            Fault.MODEL: f"{settings.base_url} knows no model '{settings.model}' ({reason}); check engine.model",
            Fault.ADDRESS: f"{settings.base_url}/chat/completions is not there ({reason}); check engine.base_url, which mostly ends in /v1",
        }
        return advice.get(fault, reason)

    def _headers(self) -> dict[str, str]:
        key = self._key.get_secret_value()
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def _scrubbed(self, text: str) -> str:
        key = self._key.get_secret_value()
        return text.replace(key, "[key]") if len(key) >= SECRET_CHARS else text


def _proxy(url: str) -> str | None:
    """The proxy that the environment names. aiohttp would look for passwords in ~/.netrc along with it, and stop at one beside a key."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
