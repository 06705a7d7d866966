"""Engine openai over real sockets: requests, answers, the end of an iterator, the API key, and settings."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import pickle
import signal
import threading
import traceback
from datetime import UTC, datetime
from typing import Any

import pytest

from captioning.engine import FOLDER, CaptionerSettings, EngineError
from captioning.engines.openai import Clock, OpenAI, OpenAICaptioner
from cluster.plugins import build
from tests.support.misbehaving_server import Act, Server, completion, error
from tests.support.openai_engine import (
    KEY,
    VirtualClock,
    answer_texts,
    captioner,
    expected_texts,
    question,
)

# Requests


def test_request_has_images_text_and_settings(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    asked = question(
        "what?",
        system="be brief",
        images=(b"one", b"two"),
        image_times_s=(0.0, 0.5),
        temperature=0.7,
        seed=5,
        json_schema=schema,
    )
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_p": 0.9}
    answers = list(captioner(server, detail="low", extra=extra).answer([asked]))
    assert answer_texts(answers) == expected_texts(["what?"])
    (request,) = server.requests
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"] == "application/json"
    urls = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in (b"one", b"two")]
    assert request.body == {
        "model": "a-model",
        "messages": [
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    *({"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls),
                    {"type": "text", "text": "what?"},
                ],
            },
        ],
        "max_tokens": 50,
        "temperature": 0.7,
        "seed": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}},
        **extra,
    }


def test_fields_can_be_removed_and_the_token_limit_renamed(server: Server) -> None:
    engine = captioner(
        server, max_tokens_field="max_completion_tokens", extra={"seed": None, "temperature": None}, guided=False
    )
    list(engine.answer([question("a", json_schema={"type": "object"})]))
    assert server.requests[0].body == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "a"}],
        "max_completion_tokens": 50,
    }


def test_several_images_as_one_video(server: Server) -> None:
    questions = [
        question("many", images=(b"one", b"two"), image_times_s=(0.0, 0.5)),
        question("one", images=(b"one",), image_times_s=(0.0,)),
    ]
    list(captioner(server, inputs="video").answer(questions))
    contents = {request.text: request.body["messages"][0]["content"][0] for request in server.requests}
    assert contents["many"] == {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,b25l,dHdv"}}
    assert contents["one"] == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,b25l"}}


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_large_images_are_sent_whole(server: Server) -> None:
    image = bytes(range(256)) * 8192
    list(captioner(server).answer([question("big", images=(image, image), image_times_s=(0.0, 0.5))]))
    items = server.requests[0].body["messages"][0]["content"][:2]
    assert [base64.b64decode(item["image_url"]["url"].partition(",")[2]) for item in items] == [image, image]


def test_no_header_without_a_key(server: Server) -> None:
    engine = OpenAI(base_url=server.base_url, model="m", api_key_env="").open()
    assert answer_texts(list(engine.answer([question("a")]))) == expected_texts(["a"])
    assert "Authorization" not in server.requests[0].headers


# Answers


def test_no_requests_without_questions(server: Server) -> None:
    assert list(captioner(server).answer([])) == []
    assert server.requests == []


def test_answers_are_yielded_as_they_arrive(server: Server) -> None:
    release = threading.Event()
    server.reset({"slow": [Act(hold=release)]})
    answers = captioner(server).answer([question("slow"), question("quick")])
    first = next(answers)
    assert answer_texts([first]) == expected_texts(["quick"])
    release.set()
    assert answer_texts([first, *answers]) == expected_texts(["quick", "slow"])


@pytest.mark.parametrize(
    ("body", "text", "truncated"),
    [
        (completion("cut", finish_reason="length"), "cut", True),
        (completion(None, finish_reason="length"), "", True),
        (completion(None, refusal="I cannot."), "I cannot.", False),
        (completion(""), "", False),
        (completion("half \ud83d a pair"), "half \ufffd a pair", False),
        (completion("ünïcode 猫"), "ünïcode 猫", False),
        (completion("ok", usage=None), "ok", False),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_kinds_of_answers(server: Server, body: dict[str, Any], text: str, truncated: bool, chunked: bool) -> None:
    server.reset({"a": [Act(body=body, chunked=chunked)]})
    (answer,) = captioner(server, price_in=1.0, price_out=10.0).answer([question("a")])
    assert (answer.text, answer.truncated, answer.error) == (text, truncated, None)
    assert (answer.tokens_in, answer.tokens_out) == ((100, 20) if "usage" in body else (0, 0))
    # Without usage: the bytes of the text, the allowance for the template, and all tokens of the answer.
    assert answer.cost_usd == pytest.approx((100 + 200) / 1e6 if "usage" in body else (1 + 64 + 500) / 1e6)
    assert server.counts() == {"a": 1}


# The end of an iterator


def thread_is_running() -> bool:
    return "openai-captioner" in [thread.name for thread in threading.enumerate()]


def test_closing_cancels_requests_in_flight(server: Server) -> None:
    release = threading.Event()
    server.reset({name: [Act(hold=release)] for name in "bcd"})
    engine = captioner(server)
    answers = engine.answer([question(name) for name in "abcdef"])
    assert next(answers).text.startswith("answer to")
    answers.close()  # type: ignore[attr-defined]
    assert not thread_is_running()
    release.set()
    assert answer_texts(list(engine.answer([question("z")]))) == expected_texts(["z"])


def test_ctrl_c_during_a_request(server: Server) -> None:
    release = threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    server.reset({"a": [Act(on_request=lambda: signal.pthread_kill(main, signal.SIGINT), hold=release)]})
    # Python ignores the signal if it was started in the background.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(captioner(server).answer([question("a")]))
    finally:
        signal.signal(signal.SIGINT, handler)
    release.set()
    assert not thread_is_running()


def test_only_one_call_may_be_active(server: Server) -> None:
    engine = captioner(server)
    first = engine.answer([question("a"), question("b")])
    next(first)
    with pytest.raises(RuntimeError, match="is still active"):
        next(engine.answer([question("c")]))
    list(first)


@pytest.mark.slow
def test_real_clock(server: Server) -> None:
    async def wait() -> float:
        start_s = Clock().now_s()
        await Clock().wait([], 0.01)
        await Clock().wait([asyncio.create_task(asyncio.sleep(0))], math.inf)
        return Clock().now_s() - start_s

    assert asyncio.run(wait()) > 0
    assert abs((Clock().date() - datetime.now(UTC)).total_seconds()) < 60
    server.reset({"a": [Act(503, error("busy"), {"Retry-After": "0"})]})
    assert answer_texts(list(captioner(server, Clock()).answer([question("a")]))) == expected_texts(["a"])


# The API key


def test_key_is_in_no_message_log_or_dump(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    long = "x" * 290 + KEY
    server.reset(
        {
            "a": [Act(500, error(f"cannot use {KEY}")), Act(body=f'{{"error": {{"message": "{escaped}"}}}}'.encode())],
            "b": [Act(400, error(f"header 'Authorization: Bearer {KEY}'"))],
            "c": [Act(400, long.encode())],
            "d": [Act(429, error(f"{KEY} is too quick"))],
            "e": [Act(body=completion(f"A cat. {KEY}"))],
            "f": [Act(401, error(f"wrong key {KEY[:12]}***"), hold=(release := threading.Event()))],
        }
    )
    settings = OpenAI(base_url=server.base_url, model="m", retries=3)
    engine = settings.open()
    assert isinstance(engine, OpenAICaptioner)
    engine._clock = VirtualClock()
    iterator = engine.answer([question(name) for name in "abcdef"])
    answers = [next(iterator) for _ in range(5)]
    release.set()
    with pytest.raises(EngineError) as raised:
        next(iterator)
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}", "the key was sent"
    assert {answer.uid[-1]: answer.error or answer.text for answer in answers} == {
        "a": "answer to a",
        "b": "HTTP 400: header 'Authorization: Bearer [key]'",
        "c": "HTTP 400: " + "x" * 290,
        "d": "answer to d",
        "e": "A cat. [key]",
    }
    # Without the frame of this function, whose locals have the key.
    trace = "".join(
        traceback.TracebackException(EngineError, raised.value, raised.tb.tb_next, capture_locals=True).format()
    )
    assert "openai.py" in trace
    dumped = pickle.dumps(settings).decode("latin-1") + settings.model_dump_json() + settings.identity()
    for text in (
        caplog.text,
        trace,
        repr(engine),
        repr(vars(engine)),
        repr(settings),
        dumped,
        repr(answers),
        repr(raised.value),
    ):
        assert KEY not in text
        assert KEY[:12] not in text
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [(None, "is not set"), ("  ", "is not set"), ("two words", "holds characters"), ("a\nb", "holds")],
)
def test_missing_or_impossible_key(monkeypatch: pytest.MonkeyPatch, value: str | None, fault: str) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(EngineError, match=f"MY_KEY {fault}") as raised:
        OpenAI(base_url="http://localhost/v1", model="m", api_key_env="MY_KEY").open()
    assert value is None or not value.strip() or value not in str(raised.value)


# Settings


def build_engine(**fields: Any) -> CaptionerSettings:
    """Return settings of the engine with some fields changed."""
    return build(
        FOLDER, CaptionerSettings, {"name": "openai", "base_url": "http://localhost:8000/v1", "model": "m", **fields}
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": "localhost:8000/v1"}, "http:// or https://"),
        ({"base_url": "https://me:secret@host/v1"}, "no user, password"),
        ({"base_url": "https://host/v1?key=secret"}, "no user, password"),
        ({"base_url": "https://host/v1/chat/completions"}, "it is added"),
        ({"api_key_env": KEY}, "never the key itself"),
        ({"extra": {"stream": True}}, "extra cannot set stream"),
        ({"budget_usd": 1.0}, "needs price_in and price_out"),
        ({"model": ""}, "at least 1 character"),
        ({"concurrency": 0}, "greater than 0"),
    ],
)
def test_invalid_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        build_engine(**fields)
    assert "secret" not in str(raised.value)
    assert KEY not in str(raised.value)


def test_identity_covers_what_answers_depend_on() -> None:
    same = [
        {"base_url": "https://b/v1"},
        {"concurrency": 1},
        {"price_in": 1.0},
        {"timeout_s": 1.0},
        {"api_key_env": ""},
        {"max_tokens_field": "max_tokens"},
    ]
    other = [{"model": "n"}, {"extra": {"top_p": 0.5}}, {"detail": "low"}, {"inputs": "video"}, {"guided": False}]
    identity = build_engine().identity()
    assert all(build_engine(**fields).identity() == identity for fields in same)
    assert len({identity, *(build_engine(**fields).identity() for fields in other)}) == 1 + len(other)
    assert "m" in identity.split()


def test_run_has_one_worker_so_that_limits_hold() -> None:
    assert OpenAI(base_url="http://a/v1", model="m").resources().max_workers == 1
