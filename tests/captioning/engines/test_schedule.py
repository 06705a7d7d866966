"""The schedule of engine openai without a network: rates and the budget hold under any outcomes, in virtual time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.engine import Answer, Question
from captioning.engines._limits import Limits
from captioning.engines._replies import Failure, FailureKind, Reply, Usage
from captioning.engines._schedule import Attempt, Schedule

REQUEST_S = 2.0
"""Duration of every request."""


def question(index: int, n_images: int = 0) -> Question:
    return Question(f"k{index}", f"u{index}", f"question {index}", images=(b"",) * n_images, max_tokens=50)


def run_schedule(
    schedule: Schedule, outcomes: dict[int, list[Reply | Failure]], limits: Limits
) -> tuple[list[float], list[Answer]]:
    """Run a schedule; return the start times of all requests and the answers.

    `outcomes` has the outcomes of the first, second ... request of a question by its index; later ones get a reply.
    """
    now_s, starts_s, answers = 0.0, [], []
    in_flight: list[tuple[float, Attempt]] = []
    while (step := schedule.next(now_s)) is not None:
        if isinstance(step, Attempt):
            starts_s.append(now_s)
            in_flight.append((now_s + REQUEST_S, step))
            assert limits.in_flight == len(in_flight) <= limits.window.size
            continue
        assert in_flight or step < math.inf, "nothing to wait for"
        assert step > 0
        now_s = min([now_s + step, *(end_s for end_s, _ in in_flight)])
        for ended in [item for item in in_flight if item[0] <= now_s]:
            in_flight.remove(ended)
            attempt = ended[1]
            left = outcomes.get(attempt.index)
            outcome = left.pop(0) if left else Reply("fine", usage=Usage(100, 20))
            answers += schedule.end(attempt, outcome, now_s)
    assert not in_flight
    return starts_s, answers


FAILURES: list[Failure] = [
    Failure(FailureKind.RATE_LIMIT, "HTTP 429"),
    Failure(FailureKind.RATE_LIMIT, "HTTP 429", wait_s=7.0),
    Failure(FailureKind.TRANSIENT, "HTTP 500"),
    Failure(FailureKind.TRANSIENT, "lost", maybe_charged=True),
]
OUTCOMES: st.SearchStrategy[Reply | Failure] = st.sampled_from([*FAILURES, Reply("no usage")])
USAGES = st.builds(Usage, st.integers(0, 70), st.integers(0, 50))


@pytest.mark.slow
@given(
    st.lists(st.lists(OUTCOMES, max_size=6), min_size=1, max_size=7),
    st.integers(1, 5),
    st.sampled_from([None, 3.0, 30.0, 600.0]),
)
def test_each_question_is_answered_once_within_the_rate(
    script: list[list[Reply | Failure]], concurrency: int, per_minute: float | None
) -> None:
    limits = Limits(concurrency, requests_per_minute=per_minute, price_in=1.0, price_out=10.0)
    schedule = Schedule([question(i) for i in range(len(script))], limits, retries=3)
    starts_s, answers = run_schedule(schedule, {i: list(outcomes) for i, outcomes in enumerate(script)}, limits)
    assert schedule.stopped is None
    assert sorted(answer.key for answer in answers) == [f"k{i}" for i in range(len(script))]
    assert limits.spent_usd == pytest.approx(sum(answer.cost_usd for answer in answers))
    if per_minute:
        assert all(later - earlier >= 60 / per_minute - 1e-6 for earlier, later in itertools.pairwise(starts_s))


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.one_of(st.sampled_from(FAILURES), USAGES), max_size=3)), max_size=7
    ),
    st.integers(1, 5),
    st.floats(1e-5, 5e-3),
)
def test_budget_is_never_exceeded(
    script: Sequence[tuple[int, list[Failure | Usage]]], concurrency: int, budget_usd: float
) -> None:
    """No answer takes more tokens than the estimate, which `UsageEstimate` ensures after the first with images."""
    limits = Limits(concurrency, price_in=1.0, price_out=10.0, budget_usd=budget_usd)
    limits._estimate.update(question(99, n_images=1), Usage(70, 0))
    outcomes: dict[int, list[Reply | Failure]] = {
        index: [*(Reply("x", usage=each) if isinstance(each, Usage) else each for each in listed)]
        for index, (_, listed) in enumerate(script)
    }
    schedule = Schedule([question(i, n_images) for i, (n_images, _) in enumerate(script)], limits, retries=3)
    for listed in outcomes.values():
        listed.append(Reply("x", usage=Usage(60, 50)))
    _, answers = run_schedule(schedule, outcomes, limits)
    assert limits.spent_usd <= budget_usd + 1e-12
    assert len({answer.key for answer in answers}) == len(answers)
    assert (schedule.stopped is None) == (len(answers) == len(script))


def test_first_question_with_images_is_alone_under_a_budget() -> None:
    limits = Limits(8, price_in=1.0, price_out=1.0, budget_usd=1.0)
    schedule = Schedule([question(i, n_images=2) for i in range(5)], limits, retries=0)
    starts_s, _ = run_schedule(schedule, {}, limits)
    assert starts_s == [0.0, *[REQUEST_S] * 4]


def test_failures_are_held_until_the_server_answers() -> None:
    limits = Limits(1)
    failure = Failure(FailureKind.TRANSIENT, "HTTP 500")
    schedule = Schedule([question(i) for i in range(20)], limits, retries=0)
    failing = [*range(7), *range(9, 17)]
    _, answers = run_schedule(schedule, {i: [failure] for i in failing}, limits)
    assert [answer.error for answer in answers] == ["HTTP 500"] * 7 + [None] * 2
    assert str(schedule.stopped).startswith("8 questions in a row got no answer")
    few = Schedule([question(i) for i in range(3)], limits, retries=0)
    _, answers = run_schedule(few, {i: [failure] for i in range(3)}, limits)
    assert len(answers) == 3, "after the last question nothing is held"
