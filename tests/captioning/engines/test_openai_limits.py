"""When questions are sent, without a network: rates, pauses and the budget under any outcomes, in virtual time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.engine import Answer, Question
from captioning.engines._limits import Limits, Rate, Window, backoff_s
from captioning.engines._replies import Failure, Fault, Reply, Usage, retry_after_s
from captioning.engines._schedule import Schedule, Try

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)
TAKES_S = 2.0


def question(i: int, images: int = 0) -> Question:
    return Question(f"k{i}", f"u{i}", f"question {i}", images=(b"",) * images, max_tokens=50)


def play(
    schedule: Schedule, outcomes: dict[int, list[Reply | Failure]], limits: Limits
) -> tuple[list[float], list[Answer]]:
    """Plays a schedule with requests of two seconds; gives the times of all starts and the answers."""
    now_s, starts, answers = 0.0, [], []
    flying: list[tuple[float, Try]] = []
    while (step := schedule.next(now_s)) is not None:
        if isinstance(step, Try):
            starts.append(now_s)
            flying.append((now_s + TAKES_S, step))
            assert limits.in_flight == len(flying) <= limits.window.size
            continue
        assert flying or step < math.inf, "nothing to wait for"
        assert step > 0
        now_s = min([now_s + step, *(until_s for until_s, _ in flying)])
        for landed in [item for item in flying if item[0] <= now_s]:
            flying.remove(landed)
            todo = outcomes.get(landed[1].index)
            answers += schedule.end(landed[1], todo.pop(0) if todo else Reply("fine", usage=Usage(100, 20)), now_s)
    assert not flying
    return starts, answers


SLOW = Failure(Fault.SLOW, "HTTP 429")
OUTCOMES = st.sampled_from(
    [
        SLOW,
        Failure(Fault.SLOW, "HTTP 429", wait_s=7.0),
        Failure(Fault.RETRY, "HTTP 500"),
        Failure(Fault.RETRY, "lost", maybe_charged=True),
        Reply("no usage"),
    ]
)


@given(
    st.lists(st.lists(OUTCOMES, max_size=6), min_size=1, max_size=7),
    st.integers(1, 5),
    st.sampled_from([None, 3.0, 30.0, 600.0]),
)
def test_each_question_once_and_rates_kept(
    script: list[list[Reply | Failure]], concurrency: int, per_minute: float | None
) -> None:
    limits = Limits(concurrency, requests_per_minute=per_minute, price_in=1.0, price_out=10.0)
    schedule = Schedule([question(i) for i in range(len(script))], limits, retries=3)
    starts, answers = play(schedule, {i: list(outcomes) for i, outcomes in enumerate(script)}, limits)
    assert schedule.stopped is None
    assert sorted(answer.key for answer in answers) == [f"k{i}" for i in range(len(script))]
    assert limits.spent_usd == pytest.approx(sum(answer.cost_usd for answer in answers))
    if per_minute:
        assert all(later - sooner >= 60 / per_minute - 1e-6 for sooner, later in itertools.pairwise(starts))


USAGES = st.builds(Usage, st.integers(0, 70), st.integers(0, 50))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.one_of(OUTCOMES.filter(lambda o: isinstance(o, Failure)), USAGES), max_size=3),
        ),
        max_size=7,
    ),
    st.integers(1, 5),
    st.floats(1e-5, 5e-3),
)
def test_the_budget_is_never_exceeded(
    script: Sequence[tuple[int, list[Failure | Usage]]], concurrency: int, budget_usd: float
) -> None:
    """With answers that take no more than the expected most, as `Expected` promises it from the first answer about pictures on."""
    limits = Limits(concurrency, price_in=1.0, price_out=10.0, budget_usd=budget_usd)
    limits._expected.learn(question(99, images=1), Usage(70, 0))
    outcomes = {
        i: [Reply("x", usage=o) if isinstance(o, Usage) else o for o in listed] for i, (_, listed) in enumerate(script)
    }
    schedule = Schedule([question(i, images) for i, (images, _) in enumerate(script)], limits, retries=3)
    for listed in outcomes.values():
        listed.append(Reply("x", usage=Usage(60, 50)))
    _, answers = play(schedule, outcomes, limits)
    assert limits.spent_usd <= budget_usd + 1e-12
    assert len({answer.key for answer in answers}) == len(answers)
    assert (schedule.stopped is None) == (len(answers) == len(script))


def test_the_first_question_with_pictures_goes_alone_under_a_budget() -> None:
    limits = Limits(8, price_in=1.0, price_out=1.0, budget_usd=1.0)
    starts, _ = play(Schedule([question(i, images=2) for i in range(5)], limits, 0), {}, limits)
    assert starts == [0.0, *[TAKES_S] * 4]


def test_lost_questions_wait_for_a_sign_of_life() -> None:
    limits = Limits(1)
    lost = Failure(Fault.RETRY, "HTTP 500")
    schedule = Schedule([question(i) for i in range(20)], limits, retries=0)
    _, answers = play(schedule, {**{i: [lost] for i in range(7)}, **{i: [lost] for i in range(9, 17)}}, limits)
    assert [answer.error for answer in answers] == ["HTTP 500"] * 7 + [None] * 2
    assert str(schedule.stopped).startswith("8 questions in a row got no answer")
    few = Schedule([question(i) for i in range(3)], limits, retries=0)
    assert len(play(few, {i: [lost] for i in range(3)}, limits)[1]) == 3, "at the end there is nothing more to wait for"


def test_one_refusal_is_one_pause_however_many_were_in_flight() -> None:
    window = Window(8)
    assert window.refused(0.0, 5.0, 20.0) == 20.0
    assert window.refused(1.0, 6.0, None) is None
    assert window.wait_s(6.0) == 19.0
    assert window.refused(2.0, 7.0, 30.0) is None
    assert window.wait_s(7.0) == 30.0
    assert window.size == 4
    first = window.refused(40.0, 41.0, None)
    assert first is not None
    assert 1 <= first < 2, "the second in a row without an answer between"
    assert window.size == 2
    sizes = [window.answered() or window.size for _ in range(40)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 8


def test_backing_off_doubles_and_follows_from_the_key() -> None:
    waits = [backoff_s(tries, "a") for tries in range(1, 50)]
    assert waits == [backoff_s(tries, "a") for tries in range(1, 50)]
    assert waits != [backoff_s(tries, "b") for tries in range(1, 50)]
    assert all(0.5 <= wait / min(60, 2 ** (tries - 1)) < 1 for tries, wait in enumerate(waits, start=1))
    assert backoff_s(10**6, "a") <= 60


@given(st.floats(0.1, 1e4), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), min_size=1))
def test_a_rate_holds_over_any_stretch(per_minute: float, wanted: list[tuple[float, float]]) -> None:
    rate, now_s, taken = Rate(per_minute), 0.0, []
    for after_s, amount in wanted:
        now_s += after_s
        now_s += rate.wait_s(now_s)
        rate.take(amount, now_s)
        taken.append((now_s, amount))
    for i, (began_s, _) in enumerate(taken):
        between = sum(amount for _, amount in taken[i:-1])
        assert between <= (taken[-1][0] - began_s) * per_minute / 60 * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"Retry-After": "12"}, 12.0),
        ({"Retry-After": " 1.5 "}, 1.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Wed, 99 May 2030 12:00:00 GMT"}, None),
        ({"Retry-After": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"Retry-After": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0.0),
        ({"Retry-After": "Wed, 01 May 2030 12:00:10 -0000"}, 10.0),
        (
            {
                "Retry-After": format_datetime(NOW, usegmt=True),
                "Date": format_datetime(NOW - timedelta(seconds=5), usegmt=True),
            },
            5.0,
        ),
        ({"Retry-After": format_datetime(NOW, usegmt=True), "Date": "yesterday"}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, NOW) == wait_s
