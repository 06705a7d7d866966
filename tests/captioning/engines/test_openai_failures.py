"""Engine openai over real sockets when requests fail: retries, the end of the run, pauses, rates and the budget."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from captioning.engines import openai
from tests.support.misbehaving_server import Act, Server, completion, error, serving
from tests.support.openai_engine import (
    DATE,
    KEY,
    QUESTION_ACTS,
    TRANSIENT_ACTS,
    VirtualClock,
    answer_texts,
    answers_before_error,
    captioner,
    expected_texts,
    question,
)

PRICES = {"price_in": 1.0, "price_out": 10.0}
COST_USD = (100 + 200) / 1e6
"""Cost of one normal reply at these prices."""
ACTS = {**TRANSIENT_ACTS, **{name: act for name, (act, _) in QUESTION_ACTS.items()}}

# Failures of one question


@pytest.mark.slow
@pytest.mark.parametrize("act", TRANSIENT_ACTS.values(), ids=TRANSIENT_ACTS.keys())
def test_transient_failure_is_retried(server: Server, act: Act) -> None:
    server.reset({"a": [act, act]})
    answers = list(captioner(server).answer([question("a"), question("b")]))
    assert answer_texts(answers) == expected_texts(["a", "b"])
    assert server.counts() == {"a": 3, "b": 1}


@pytest.mark.slow
@pytest.mark.parametrize("act", TRANSIENT_ACTS.values(), ids=TRANSIENT_ACTS.keys())
def test_repeated_failure_fails_its_question_alone(server: Server, act: Act) -> None:
    server.reset({"a": [act] * 9})
    answers = {answer.uid: answer for answer in captioner(server).answer([question("a"), question("b")])}
    assert answers["uid of a"].error is not None
    assert answers["uid of a"].error.endswith("(after 4 attempts)")
    assert answers["uid of b"].error is None
    assert server.counts() == {"a": 4, "b": 1}


@pytest.mark.parametrize(("act", "reason"), QUESTION_ACTS.values(), ids=QUESTION_ACTS.keys())
def test_refused_question_is_not_retried(server: Server, act: Act, reason: str) -> None:
    server.reset({"a": [act]})
    answers = {answer.uid: answer for answer in captioner(server).answer([question("a"), question("b")])}
    assert str(answers["uid of a"].error).startswith(reason)
    assert answers["uid of b"].text == "answer to b"
    assert server.counts() == {"a": 1, "b": 1}


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_reply_without_end_is_given_up(server: Server, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "MAX_REPLY_BYTES", 5000)
    body = gzip.compress(bytes(1 << 20)) if encoding else bytes(1 << 20)
    act = Act(body=body, headers={"Content-Encoding": encoding} if encoding else {})
    server.reset({"a": [act] * 9})
    (answer,) = captioner(server, retries=1).answer([question("a")])
    assert str(answer.error).startswith("the reply has more than 5,000 bytes")
    server.reset({"a": [act]})
    (answer,) = captioner(server).answer([question("a")])
    assert answer.text == "answer to a"


@pytest.mark.slow
def test_time_out_may_have_been_charged(server: Server) -> None:
    release = threading.Event()
    server.reset({"a": [Act(hold=release)], "b": [Act(hold=release)] * 2})
    engine = captioner(server, timeout_s=0.7, retries=1, **PRICES)
    answers = {answer.uid: answer for answer in engine.answer([question("a"), question("b")])}
    release.set()
    assert answers["uid of a"].text == "answer to a"
    assert answers["uid of b"].error == "TimeoutError: no answer within 0.7 s (timeout_s) (after 2 attempts)"
    assert answers["uid of b"].may_pass
    # A request that timed out counts at its largest cost, and the retry is added.
    max_cost_usd = (1 + 64 + 500) / 1e6
    assert answers["uid of a"].cost_usd == pytest.approx(max_cost_usd + COST_USD)
    assert answers["uid of b"].cost_usd == pytest.approx(2 * max_cost_usd)
    assert server.counts() == {"a": 2, "b": 2}


@pytest.mark.slow
@examples(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(st.lists(st.sampled_from(sorted(ACTS)), max_size=5), max_size=7), concurrency=st.integers(1, 5))
def test_each_question_gets_one_answer_or_one_error(
    shared_server: Server, script: list[list[str]], concurrency: int
) -> None:
    names = [f"q{i}" for i in range(len(script))]
    shared_server.reset({name: [ACTS[act] for act in acts] for name, acts in zip(names, script, strict=True)})
    answers = list(captioner(shared_server, concurrency=concurrency).answer([question(name) for name in names]))
    assert sorted(answer_texts(answers)) == names
    expected: dict[str, tuple[int, bool]] = {}
    for name, acts in zip(names, script, strict=True):
        n_retried = next((i for i, act in enumerate(acts) if act in QUESTION_ACTS), len(acts))
        expected[name] = (min(n_retried + 1, 4), n_retried <= 3 and n_retried == len(acts))
    counts = shared_server.counts()
    found = {answer.uid.removeprefix("uid of "): answer.error is None for answer in answers}
    assert {name: (counts[name], is_answered) for name, is_answered in found.items()} == expected
    assert shared_server.max_in_flight <= concurrency


# Failures that end the run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            Act(401, error(f"Incorrect API key provided: {KEY}")),
            "refuses the key (HTTP 401); check the environment variable OPENAI_API_KEY",
        ),
        (Act(403, b"forbidden"), "refuses the key (HTTP 403); check the environment variable OPENAI_API_KEY"),
        (Act(402, error("pay")), "no credit left (HTTP 402: pay)"),
        (
            Act(429, error("quota", type="insufficient_quota", code="credit_balance_exhausted")),
            "no credit left (HTTP 429: quota)",
        ),
        (Act(404, error("The model `a-model` does not exist.")), "has no model 'a-model'"),
        (Act(404, b"<html>nginx</html>"), "check engine.base_url"),
        (Act(407, b"who are you"), "check engine.base_url"),
        (Act(308, b"", {"Location": "https://elsewhere.example/v1/chat/completions"}), "check engine.base_url"),
        (Act(503, error("maintenance"), {"Retry-After": "7200"}), "asks to wait 7200 s"),
    ],
)
def test_failure_of_all_questions_ends_the_run(server: Server, act: Act, reason: str) -> None:
    server.reset({"b": [act]})
    answers, raised = answers_before_error(
        captioner(server, concurrency=1), [question("a"), question("b"), question("c")]
    )
    assert answer_texts(answers) == expected_texts(["a"])
    assert reason in str(raised)
    assert server.counts() == {"a": 1, "b": 1}


def test_requests_in_flight_are_awaited_at_the_end(server: Server) -> None:
    release = threading.Event()

    class ReleasingClock(VirtualClock):
        """Releases the held reply when its request is the only one in flight."""

        async def wait(self, tasks: Sequence[asyncio.Task[Any]], seconds: float) -> None:
            if len(tasks) == 1:
                release.set()
            await super().wait(tasks, seconds)

    server.reset({"a": [Act(hold=release)], "b": [Act(401, error("no"))]})
    answers, _ = answers_before_error(
        captioner(server, ReleasingClock(), concurrency=2), [question("a"), question("b"), question("c")]
    )
    assert answer_texts(answers) == expected_texts(["a"])
    assert server.counts() == {"a": 1, "b": 1}


def test_unreachable_server_ends_the_run() -> None:
    with serving() as stopped:
        engine = captioner(stopped)
    answers, raised = answers_before_error(engine, [question("a"), question("b")])
    assert answers == []
    assert "Cannot connect" in str(raised)
    assert "run again when it is up" in str(raised)


@pytest.mark.slow
def test_server_that_is_down_fails_no_question(server: Server) -> None:
    names = [f"q{i}" for i in range(30)]
    server.reset({name: [Act(503, error("down"))] * 9 for name in names[3:]})
    answers, raised = answers_before_error(
        captioner(server, retries=1, concurrency=1), [question(name) for name in names]
    )
    assert answer_texts(answers) == expected_texts(names[:3])
    assert str(raised).startswith("8 questions in a row got no answer, the last: HTTP 503: down (after 2 attempts)")


# Pauses and rates


@pytest.mark.slow
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
def test_refusal_for_too_many_requests_pauses_all(
    server: Server, headers: Mapping[str, str], wait_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock, release = VirtualClock(), threading.Event()
    server.reset(
        {
            "a": [Act(429, error("slow down"), headers, hold=release)],
            "b": [Act(429, error("slow down"), headers, on_request=release.set)],
        },
        clock.now_s,
    )
    names = list("abcdefgh")
    answers = list(captioner(server, clock, concurrency=2).answer([question(name) for name in names]))
    assert answer_texts(answers) == expected_texts(names)
    assert sorted(request.text for request in server.requests[:2]) == ["a", "b"]
    assert min(request.arrived_s for request in server.requests[2:]) >= wait_s
    assert len([record for record in caplog.records if "all requests pause" in record.message]) == 1
    assert all(server.counts()[name] == (2 if name in "ab" else 1) for name in names)


@pytest.mark.slow
def test_concurrency_is_reached_and_not_exceeded(server: Server) -> None:
    barrier = threading.Barrier(3)
    names = [f"q{i}" for i in range(12)]
    server.reset({name: [Act(on_request=lambda: barrier.wait(5))] for name in names})
    answers = list(captioner(server, concurrency=3).answer([question(name) for name in names]))
    assert answer_texts(answers) == expected_texts(names)
    assert server.max_in_flight == 3, "the barrier releases three requests together"


@pytest.mark.slow
def test_requests_per_minute(server: Server) -> None:
    clock = VirtualClock()
    server.reset({"q3": [Act(500)]}, clock.now_s)
    names = [f"q{i}" for i in range(10)]
    answers = list(captioner(server, clock, requests_per_minute=6.0).answer([question(name) for name in names]))
    assert answer_texts(answers) == expected_texts(names)
    times_s = sorted(request.arrived_s for request in server.requests)
    assert len(times_s) == 11
    assert all(later - earlier >= 10 - 1e-6 for earlier, later in itertools.pairwise(times_s))


@pytest.mark.slow
def test_tokens_per_minute(server: Server) -> None:
    clock = VirtualClock()
    server.reset({}, clock.now_s)
    engine = captioner(server, clock, tokens_per_minute=1200.0)
    names = [f"q{i}" for i in range(6)]
    list(engine.answer([question(name, images=(b"x",), image_times_s=(0.0,)) for name in names]))
    times_s = sorted(request.arrived_s for request in server.requests)
    # The server counts 120 tokens per question, or 6 s of the rate; until it does, 2 + 64 + 100 + 50 are reserved.
    assert all(6 * index - 1e-6 <= time_s <= 10.8 * index + 1e-6 for index, time_s in enumerate(times_s))


# Budget


@pytest.mark.slow
def test_budget_ends_the_run_after_all_paid_answers(server: Server) -> None:
    names = [f"q{i}" for i in range(20)]
    questions = [question(name, images=(b"x",), image_times_s=(0.0,)) for name in names]
    answers, raised = answers_before_error(captioner(server, budget_usd=10 * COST_USD, **PRICES), questions)
    spent_usd = sum(answer.cost_usd for answer in answers)
    assert sum(server.counts().values()) == len(answers), "every paid answer is yielded"
    assert spent_usd <= 10 * COST_USD
    # The next question might have cost 100 + 67 tokens in and all 50 out.
    assert spent_usd + (167 + 500) / 1e6 > 10 * COST_USD
    assert str(raised).startswith(f"budget of $0.003 reached: {len(answers)} answers paid, ${spent_usd:.6g} in all")
    assert "raise engine.budget_usd and run again: nothing is asked twice" in str(raised)
    answered = {answer.key for answer in answers}
    engine = captioner(server, budget_usd=30 * COST_USD, **PRICES)
    engine.restore_spent_usd(spent_usd)
    left = engine.answer([each for each in questions if each.key not in answered])
    assert answer_texts([*answers, *left]) == expected_texts(names)
    assert set(server.counts().values()) == {1}


def test_costs_of_earlier_runs_count(server: Server) -> None:
    engine = captioner(server, budget_usd=1.0, **PRICES)
    engine.restore_spent_usd(0.9999)
    answers, raised = answers_before_error(engine, [question("a")])
    assert (answers, server.requests) == ([], [])
    assert "0 answers paid, $0.9999 in all" in str(raised)


def test_budget_needs_a_server_that_reports_usage(server: Server) -> None:
    server.reset({"a": [Act(body=completion("fine", usage=None))]})
    answers, raised = answers_before_error(
        captioner(server, concurrency=1, budget_usd=1.0, **PRICES), [question("a"), question("b")]
    )
    assert [answer.text for answer in answers] == ["fine"]
    assert "reports no usage" in str(raised)


def test_cost_includes_failed_attempts(server: Server) -> None:
    server.reset({"a": [Act(body=completion(None)), Act(500)]})
    (answer,) = captioner(server, **PRICES).answer([question("a")])
    assert answer.cost_usd == pytest.approx(2 * COST_USD)
