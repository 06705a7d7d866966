"""The engine over real sockets, against a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import math
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr

from captioning.engine import FOLDER, Answer, CaptionerSettings, EngineError, Question
from captioning.engines.openai import Clock, OpenAI, OpenAICaptioner
from cluster.plugins import build
from tests.support.misbehaving_server import Act, Server, completion, error, serving

KEY = "sk-test-Zm9vYmFyYmF6cXV4Cg"
DATE = datetime(2030, 5, 1, 12, tzinfo=UTC)


class Virtual(Clock):
    """Waits take no time: where nothing comes in for a moment, the clock is put forward."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def date(self) -> datetime:
        return DATE

    async def wait(self, tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
        patience_s = None if seconds == math.inf else 0.02
        done, _ = (
            await asyncio.wait(tasks, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED) if tasks else (set(), ())
        )
        if not done:
            self.time_s += seconds


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.reset({})
    return shared_server


def question(text: str, **fields: Any) -> Question:
    return Question(f"key of {text}", f"uid of {text}", text, **{"max_tokens": 50, **fields})


def captioner(server: Server, clock: Clock | None = None, **fields: Any) -> OpenAICaptioner:
    settings = OpenAI(
        base_url=server.base_url, model="a-model", **{"concurrency": 4, "retries": 3, "timeout_s": 10.0, **fields}
    )
    return OpenAICaptioner(settings, SecretStr(KEY), clock or Virtual())


def texts(answers: Sequence[Answer]) -> dict[str, str]:
    """Words by question; checks that each is answered once, and that key and uid belong together."""
    asked = [answer.key.removeprefix("key of ") for answer in answers]
    assert len(asked) == len(set(asked)), "answered twice"
    assert all(answer.uid == f"uid of {text}" for answer, text in zip(answers, asked, strict=True))
    return {text: answer.text for text, answer in zip(asked, answers, strict=True)}


def right(names: Sequence[str]) -> dict[str, str]:
    return {name: f"answer to {name}" for name in names}


def paid_and_error(engine: OpenAICaptioner, questions: Sequence[Question]) -> tuple[list[Answer], EngineError]:
    answers: list[Answer] = []
    with pytest.raises(EngineError) as raised:
        answers.extend(engine.answer(questions))
    return answers, raised.value


# What is sent


def test_request_has_pictures_words_and_settings(server: Server) -> None:
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
    assert texts(list(captioner(server, detail="low", extra=extra).answer([asked]))) == right(["what?"])
    (seen,) = server.seen
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.headers["Content-Type"] == "application/json"
    urls = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in (b"one", b"two")]
    assert seen.body == {
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


def test_a_field_can_be_left_out_and_the_limit_renamed(server: Server) -> None:
    engine = captioner(
        server, limit_field="max_completion_tokens", extra={"seed": None, "temperature": None}, guided=False
    )
    list(engine.answer([question("a", json_schema={"type": "object"})]))
    assert server.seen[0].body == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "a"}],
        "max_completion_tokens": 50,
    }


def test_pictures_as_one_video(server: Server) -> None:
    engine = captioner(server, inputs="video")
    list(
        engine.answer(
            [
                question("many", images=(b"one", b"two"), image_times_s=(0.0, 0.5)),
                question("one", images=(b"one",), image_times_s=(0.0,)),
            ]
        )
    )
    contents = {seen.text: seen.body["messages"][0]["content"][0] for seen in server.seen}
    assert contents["many"] == {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,b25l,dHdv"}}
    assert contents["one"] == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,b25l"}}


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_megabytes_are_sent_whole(server: Server) -> None:
    picture = bytes(range(256)) * 8192
    list(captioner(server).answer([question("big", images=(picture, picture), image_times_s=(0.0, 0.5))]))
    sent = [part["image_url"]["url"].partition(",")[2] for part in server.seen[0].body["messages"][0]["content"][:2]]
    assert [base64.b64decode(data) for data in sent] == [picture, picture]


def test_no_key_no_header(server: Server) -> None:
    engine = OpenAI(base_url=server.base_url, model="m", api_key_env="").open()
    assert texts(list(engine.answer([question("a")]))) == right(["a"])
    assert "Authorization" not in server.seen[0].headers


# Answers


def test_no_questions_no_requests(server: Server) -> None:
    assert list(captioner(server).answer([])) == []
    assert server.seen == []


def test_answers_come_as_soon_as_they_are_there_and_each_to_its_own_question(server: Server) -> None:
    go = threading.Event()
    server.reset({"slow": [Act(hold=go)]})
    answers = captioner(server).answer([question("slow"), question("quick")])
    first = next(answers)
    assert texts([first]) == right(["quick"])
    go.set()
    assert texts([first, *answers]) == right(["quick", "slow"])


@pytest.mark.parametrize(
    ("body", "text", "truncated"),
    [
        (completion("cut", ended="length"), "cut", True),
        (completion(None, ended="length"), "", True),
        (completion(None, refusal="I cannot."), "I cannot.", False),
        (completion(""), "", False),
        (completion("half \ud83d a pair"), "half ? a pair", False),
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
    # Without usage: a word's bytes, the allowance for the template, and all tokens of the answer.
    assert answer.cost_usd == pytest.approx((100 + 200) / 1e6 if "usage" in body else (1 + 64 + 500) / 1e6)
    assert server.counts() == {"a": 1}


PASSING = {
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
    "choices of nothing": Act(body={"choices": [None]}),
    "null content": Act(body=completion(None)),
    "aborted": Act(body=completion("half an ans", ended="abort")),
    "error with 200": Act(body=error("upstream went away")),
    "503 with 200": Act(body=error("upstream went away", code=503)),
    "wrong length": Act(body=b"x", headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("act", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_asked_again(server: Server, act: Act) -> None:
    server.reset({"a": [act, act]})
    assert texts(list(captioner(server).answer([question("a"), question("b")]))) == right(["a", "b"])
    assert server.counts() == {"a": 3, "b": 1}


@pytest.mark.parametrize("act", PASSING.values(), ids=PASSING.keys())
def test_what_does_not_pass_fails_its_question_alone(server: Server, act: Act) -> None:
    server.reset({"a": [act] * 9})
    answers = {answer.uid: answer for answer in captioner(server).answer([question("a"), question("b")])}
    assert answers["uid of a"].error is not None
    assert answers["uid of a"].error.endswith("(after 4 tries)")
    assert answers["uid of b"].error is None
    assert server.counts() == {"a": 4, "b": 1}


QUESTIONS_OWN = {
    "400": (Act(400, error("bad picture")), "HTTP 400: bad picture"),
    "404": (Act(404, error("No endpoints found that support image input")), "HTTP 404: No endpoints"),
    "413": (Act(413, b"too large"), "HTTP 413: too large"),
    "422": (Act(422, {"detail": [{"msg": "no"}]}), "HTTP 422"),
    "flagged": (Act(403, error("moderated", metadata={"flagged_input": "x"})), "HTTP 403: moderated"),
    "400 of old vLLM": (
        Act(400, {"object": "error", "message": "too many pictures", "code": 400}),
        "HTTP 400: too many pictures",
    ),
    "400 with 200": (Act(body=error("no", code=400)), "HTTP 400: no"),
    "filtered": (Act(body=completion(None, ended="content_filter")), "the server's content filter"),
}


@pytest.mark.parametrize(("act", "reason"), QUESTIONS_OWN.values(), ids=QUESTIONS_OWN.keys())
def test_a_questions_own_fault_is_not_asked_again(server: Server, act: Act, reason: str) -> None:
    server.reset({"a": [act]})
    answers = {answer.uid: answer for answer in captioner(server).answer([question("a"), question("b")])}
    assert str(answers["uid of a"].error).startswith(reason)
    assert answers["uid of b"].text == "answer to b"
    assert server.counts() == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            Act(401, error(f"Incorrect API key provided: {KEY}")),
            "refuses the key (HTTP 401); check the environment variable OPENAI_API_KEY",
        ),
        (Act(403, b"forbidden"), "refuses the key (HTTP 403); check the environment variable OPENAI_API_KEY"),
        (Act(402, error("pay")), "nothing left (HTTP 402: pay)"),
        (
            Act(429, error("quota", type="insufficient_quota", code="credit_balance_exhausted")),
            "nothing left (HTTP 429: quota)",
        ),
        (Act(404, error("The model `a-model` does not exist.")), "knows no model 'a-model'"),
        (Act(404, b"<html>nginx</html>"), "check engine.base_url"),
        (Act(407, b"who are you"), "check engine.base_url"),
        (Act(308, b"", {"Location": "https://elsewhere.example/v1/chat/completions"}), "check engine.base_url"),
        (Act(503, error("maintenance"), {"Retry-After": "7200"}), "asks to wait 7200 s"),
    ],
)
def test_what_all_questions_would_meet_ends_the_run(server: Server, act: Act, reason: str) -> None:
    server.reset({"b": [act]})
    answers, raised = paid_and_error(captioner(server, concurrency=1), [question("a"), question("b"), question("c")])
    assert texts(answers) == right(["a"])
    assert reason in str(raised)
    assert server.counts() == {"a": 1, "b": 1}


def test_what_is_in_flight_when_all_ends_is_waited_for(server: Server) -> None:
    go = threading.Event()

    class UntilAlone(Virtual):
        async def wait(self, tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
            if len(tasks) == 1:
                go.set()
            await super().wait(tasks, seconds)

    server.reset({"a": [Act(hold=go)], "b": [Act(401, error("no"))]})
    answers, _ = paid_and_error(
        captioner(server, UntilAlone(), concurrency=2), [question("a"), question("b"), question("c")]
    )
    assert texts(answers) == right(["a"])
    assert server.counts() == {"a": 1, "b": 1}


def test_nobody_listens() -> None:
    with serving() as gone:
        engine = captioner(gone)
    answers, raised = paid_and_error(engine, [question("a"), question("b")])
    assert answers == []
    assert "Cannot connect" in str(raised)
    assert "run again when it is up" in str(raised)


def test_a_server_that_is_down_fails_no_question(server: Server) -> None:
    names = [f"q{i}" for i in range(30)]
    server.reset({name: [Act(503, error("down"))] * 9 for name in names[3:]})
    answers, raised = paid_and_error(captioner(server, retries=1, concurrency=1), [question(name) for name in names])
    assert texts(answers) == right(names[:3])
    assert str(raised).startswith("8 questions in a row got no answer, the last: HTTP 503: down (after 2 tries)")


def test_time_out(server: Server) -> None:
    go = threading.Event()
    server.reset({"a": [Act(hold=go)], "b": [Act(hold=go)] * 2})
    answers = {
        a.uid: a
        for a in captioner(server, timeout_s=0.7, retries=1, price_in=1.0, price_out=10.0).answer(
            [question("a"), question("b")]
        )
    }
    go.set()
    assert answers["uid of a"].text == "answer to a"
    assert answers["uid of b"].error == "TimeoutError: no answer within 0.7 s (timeout_s) (after 2 tries)"
    # What timed out may have been charged: the most it could take, and the retry on top.
    most = (1 + 64 + 500) / 1e6
    assert answers["uid of a"].cost_usd == pytest.approx(most + (100 + 200) / 1e6)
    assert answers["uid of b"].cost_usd == pytest.approx(2 * most)
    assert server.counts() == {"a": 2, "b": 2}


# Pace


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "20"}, 20.0),
        ({"retry-after": format_datetime(DATE + timedelta(seconds=30), usegmt=True)}, 30.0),
        (
            {
                "Retry-After": format_datetime(DATE, usegmt=True),
                "Date": format_datetime(DATE - timedelta(seconds=40), usegmt=True),
            },
            40.0,
        ),
        ({}, 0.5),
    ],
)
def test_a_refusal_for_too_many_pauses_all_and_says_so_once(
    server: Server, headers: Mapping[str, str], wait_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock, go = Virtual(), threading.Event()
    server.reset(
        {
            "a": [Act(429, error("slow down"), headers, hold=go)],
            "b": [Act(429, error("slow down"), headers, do=go.set)],
        },
        clock.now_s,
    )
    names = list("abcdefgh")
    answers = list(captioner(server, clock, concurrency=2).answer([question(name) for name in names]))
    assert texts(answers) == right(names)
    assert sorted(seen.text for seen in server.seen[:2]) == ["a", "b"]
    assert min(seen.image_times_s for seen in server.seen[2:]) >= wait_s
    assert len([record for record in caplog.records if "all requests pause" in record.message]) == 1
    assert all(server.counts()[name] == (2 if name in "ab" else 1) for name in names)


def test_never_more_in_flight_than_allowed(server: Server) -> None:
    full = threading.Barrier(3)
    names = [f"q{i}" for i in range(12)]
    server.reset({name: [Act(do=lambda: full.wait(5))] for name in names})
    assert texts(list(captioner(server, concurrency=3).answer([question(name) for name in names]))) == right(names)
    assert server.most_in_flight == 3, "the barrier lets go only of three at once"


def test_requests_per_minute(server: Server) -> None:
    clock = Virtual()
    server.reset({"q3": [Act(500)]}, clock.now_s)
    names = [f"q{i}" for i in range(10)]
    assert texts(
        list(captioner(server, clock, requests_per_minute=6.0).answer([question(name) for name in names]))
    ) == right(names)
    times = sorted(seen.image_times_s for seen in server.seen)
    assert len(times) == 11
    assert all(later - sooner >= 10 - 1e-6 for sooner, later in itertools.pairwise(times))


def test_tokens_per_minute(server: Server) -> None:
    clock = Virtual()
    server.reset({}, clock.now_s)
    engine = captioner(server, clock, tokens_per_minute=1200.0)
    names = [f"q{i}" for i in range(6)]
    list(engine.answer([question(name, images=(b"x",), image_times_s=(0.0,)) for name in names]))
    times = sorted(seen.image_times_s for seen in server.seen)
    # The server counts 120 tokens each, six seconds' worth; until it has, 2 + 64 + 100 + 50 are set aside.
    assert all(6 * before - 1e-6 <= image_times_s <= 10.8 * before + 1e-6 for before, image_times_s in enumerate(times))


# Budget

PRICES = {"price_in": 1.0, "price_out": 10.0}
EACH = (100 + 200) / 1e6


def test_the_budget_stops_it_with_all_that_was_paid_yielded(server: Server) -> None:
    names = [f"q{i}" for i in range(20)]
    questions = [question(name, images=(b"x",), image_times_s=(0.0,)) for name in names]
    answers, raised = paid_and_error(captioner(server, budget_usd=10 * EACH, **PRICES), questions)
    spent = sum(answer.cost_usd for answer in answers)
    assert sum(server.counts().values()) == len(answers), "everything paid is yielded"
    assert spent <= 10 * EACH
    # The next might have cost 100 + 67 tokens in and all 50 out.
    assert spent + (167 + 500) / 1e6 > 10 * EACH
    assert str(raised).startswith(f"budget of $0.003 reached: {len(answers)} answers paid, ${spent:.6g} in all")
    assert "raise engine.budget_usd and run again: nothing is asked twice" in str(raised)
    left = [q for q in questions if q.key not in {answer.key for answer in answers}]
    engine = captioner(server, budget_usd=30 * EACH, **PRICES)
    engine.restore_spent_usd(spent)
    assert texts([*answers, *engine.answer(left)]) == right(names)
    assert set(server.counts().values()) == {1}


def test_what_was_spent_before_counts(server: Server) -> None:
    engine = captioner(server, budget_usd=1.0, **PRICES)
    engine.restore_spent_usd(0.9999)
    answers, raised = paid_and_error(engine, [question("a")])
    assert (answers, server.seen) == ([], [])
    assert "0 answers paid, $0.9999 in all" in str(raised)


def test_a_budget_needs_a_server_that_counts(server: Server) -> None:
    server.reset({"a": [Act(body=completion("fine", usage=None))]})
    answers, raised = paid_and_error(
        captioner(server, concurrency=1, budget_usd=1.0, **PRICES), [question("a"), question("b")]
    )
    assert [answer.text for answer in answers] == ["fine"]
    assert "reports no usage" in str(raised)


def test_tries_that_came_to_nothing_are_paid_for(server: Server) -> None:
    server.reset({"a": [Act(body=completion(None)), Act(500)]})
    (answer,) = captioner(server, **PRICES).answer([question("a")])
    assert answer.cost_usd == pytest.approx(2 * EACH)


# Endings


def test_closing_cancels_what_is_in_flight(server: Server) -> None:
    go = threading.Event()
    server.reset({name: [Act(hold=go)] for name in "bcd"})
    engine = captioner(server)
    answers = engine.answer([question(name) for name in "abcdef"])
    assert next(answers).text.startswith("answer to")
    answers.close()  # type: ignore[attr-defined]
    assert no_thread_left()
    go.set()
    assert texts(list(engine.answer([question("z")]))) == right(["z"])


def test_ctrl_c_while_waiting(server: Server) -> None:
    go = threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    server.reset({"a": [Act(do=lambda: signal.pthread_kill(main, signal.SIGINT), hold=go)]})
    # Python leaves the signal ignored where it was started in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(captioner(server).answer([question("a")]))
    finally:
        signal.signal(signal.SIGINT, before)
    go.set()
    assert no_thread_left()


def test_one_call_at_a_time(server: Server) -> None:
    engine = captioner(server)
    first = engine.answer([question("a"), question("b")])
    next(first)
    with pytest.raises(RuntimeError, match="still under way"):
        next(engine.answer([question("c")]))
    list(first)


def no_thread_left() -> bool:
    return "openai-captioner" not in [thread.name for thread in threading.enumerate()]


# The key


def test_the_key_is_nowhere(server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
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
            "f": [Act(401, error(f"wrong key {KEY[:12]}***"), hold=(late := threading.Event()))],
        }
    )
    settings = OpenAI(base_url=server.base_url, model="m", retries=3)
    engine = settings.open()
    assert isinstance(engine, OpenAICaptioner)
    engine._clock = Virtual()
    under_way = engine.answer([question(name) for name in "abcdef"])
    answers = [next(under_way) for _ in range(5)]
    late.set()
    with pytest.raises(EngineError) as raised:
        next(under_way)
    assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}", "it was sent"
    assert {a.uid[-1]: a.error or a.text for a in answers} == {
        "a": "answer to a",
        "b": "HTTP 400: header 'Authorization: Bearer [key]'",
        "c": "HTTP 400: " + "x" * 290,
        "d": "answer to d",
        "e": "A cat. [key]",
    }
    # But for this function's own frame, which knows it.
    trace = "".join(
        traceback.TracebackException(EngineError, raised.value, raised.tb.tb_next, capture_locals=True).format()
    )
    assert "openai.py" in trace
    dumped = pickle.dumps(settings).decode("latin-1") + settings.model_dump_json() + settings.identity()
    for where in (
        caplog.text,
        trace,
        repr(engine),
        repr(vars(engine)),
        repr(settings),
        dumped,
        repr(answers),
        repr(raised.value),
    ):
        assert KEY not in where
        assert KEY[:12] not in where
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [(None, "is not set"), ("  ", "is not set"), ("two words", "holds characters"), ("a\nb", "holds")],
)
def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str | None, fault: str) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(EngineError, match=f"MY_KEY {fault}") as raised:
        OpenAI(base_url="http://localhost/v1", model="m", api_key_env="MY_KEY").open()
    assert value is None or not value.strip() or value not in str(raised.value)


# Settings


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
def test_settings_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        build(
            FOLDER,
            CaptionerSettings,
            {"name": "openai", "base_url": "http://localhost:8000/v1", "model": "m", **fields},
        )
    assert "secret" not in str(raised.value)
    assert KEY not in str(raised.value)


def test_identity_says_what_answers_depend_on_and_not_where() -> None:
    def identity(**fields: Any) -> str:
        return build(
            FOLDER, CaptionerSettings, {"name": "openai", "base_url": "http://a/v1", "model": "m", **fields}
        ).identity()

    same = [
        {"base_url": "https://b/v1"},
        {"concurrency": 1},
        {"price_in": 1.0},
        {"timeout_s": 1.0},
        {"api_key_env": ""},
        {"limit_field": "max_tokens"},
    ]
    other = [{"model": "n"}, {"extra": {"top_p": 0.5}}, {"detail": "low"}, {"inputs": "video"}, {"guided": False}]
    assert all(identity(**fields) == identity() for fields in same)
    assert len({identity(), *(identity(**fields) for fields in other)}) == 1 + len(other)
    assert "m" in identity().split()


def test_one_worker_so_that_limits_are_those_of_the_run() -> None:
    assert OpenAI(base_url="http://a/v1", model="m").resources().max_workers == 1


# Any script

ACTS = {**PASSING, **{name: act for name, (act, _) in QUESTIONS_OWN.items()}}


@examples(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(st.lists(st.sampled_from(sorted(ACTS)), max_size=5), max_size=7), concurrency=st.integers(1, 5))
def test_each_question_is_answered_once_or_fails_once(
    shared_server: Server, script: list[list[str]], concurrency: int
) -> None:
    names = [f"q{i}" for i in range(len(script))]
    shared_server.reset({name: [ACTS[act] for act in acts] for name, acts in zip(names, script, strict=True)})
    answers = list(captioner(shared_server, concurrency=concurrency).answer([question(name) for name in names]))
    assert sorted(texts(answers)) == names
    expected: dict[str, tuple[int, bool]] = {}
    for name, acts in zip(names, script, strict=True):
        final = next((i for i, act in enumerate(acts) if act in QUESTIONS_OWN), len(acts))
        expected[name] = (min(final + 1, 4), final <= 3 and final == len(acts))
    assert {
        answer.uid.removeprefix("uid of "): (
            shared_server.counts()[answer.uid.removeprefix("uid of ")],
            answer.error is None,
        )
        for answer in answers
    } == expected
    assert shared_server.most_in_flight <= concurrency


def test_the_real_clock(server: Server) -> None:
    async def wait() -> float:
        before = Clock().now_s()
        await Clock().wait([], 0.01)
        await Clock().wait([asyncio.create_task(asyncio.sleep(0))], math.inf)
        return Clock().now_s() - before

    assert asyncio.run(wait()) > 0
    assert abs((Clock().date() - datetime.now(UTC)).total_seconds()) < 60
    server.reset({"a": [Act(503, error("busy"), {"Retry-After": "0"})]})
    assert texts(list(captioner(server, Clock()).answer([question("a")]))) == right(["a"])
