"""Schedule the requests for a batch of questions: order, retries, and the end of the run. The time is an argument."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from captioning.engine import Answer, EngineError, Question
from captioning.engines._limits import Limits, Reservation, backoff_s
from captioning.engines._replies import Failure, FailureKind, Reply
from cluster.telemetry import log

MAX_REQUESTED_WAIT_S = 900.0
"""Longest wait that a server may ask for; a longer one ends the run."""
MAX_CONSECUTIVE_FAILURES = 8
"""Number of questions in a row that fail after all retries at which the server counts as down, and the run ends."""


@dataclass(order=True)
class Attempt:
    """One request for a question. Attempts that wait for a retry are ordered by `due_s`."""

    due_s: float
    index: int
    question: Question = field(compare=False)
    number: int = field(default=1, compare=False)
    cost_usd: float = field(default=0.0, compare=False)
    """Cost of the earlier attempts."""
    reservation: Reservation | None = field(default=None, compare=False)


class Schedule:
    """The requests for a batch of questions.

    Call `next` until it returns None, and `end` with the outcome of each attempt that `next` returned. Each question
    gets one answer, or one error after all retries, or nothing if `stopped` is set. Then no request is started, and
    those in flight are awaited, because they are paid for.
    """

    def __init__(self, questions: Sequence[Question], limits: Limits, retries: int) -> None:
        self._questions, self._limits, self._retries = questions, limits, retries
        self._n_started = 0
        self._to_retry: list[Attempt] = []
        self._held_failures: list[Answer] = []
        self.stopped: EngineError | None = None

    def next(self, now_s: float) -> Attempt | float | None:
        """Return the attempt to send now, the seconds until there may be one, or None when all attempts have ended.

        The seconds are infinite if only the outcome of an attempt in flight can change the schedule.
        """
        if self.stopped:
            return math.inf if self._limits.in_flight else None
        is_retry = bool(self._to_retry) and self._to_retry[0].due_s <= now_s
        all_started = self._n_started == len(self._questions)
        if not is_retry and (all_started or self._n_open >= self._limits.concurrency):
            if self._to_retry:
                return self._to_retry[0].due_s - now_s
            return math.inf if self._limits.in_flight else None
        attempt = self._to_retry[0] if is_retry else Attempt(now_s, self._n_started, self._questions[self._n_started])
        if wait_s := self._limits.wait_s(attempt.question, now_s):
            if wait_s == math.inf and not self._limits.in_flight:
                self.stopped = self._budget_error(attempt.question)
                return None
            return wait_s
        if is_retry:
            heapq.heappop(self._to_retry)
        else:
            self._n_started += 1
        attempt.reservation = self._limits.start(attempt.question, now_s)
        return attempt

    @property
    def _n_open(self) -> int:
        """Number of questions in flight or waiting for a retry."""
        return len(self._to_retry) + self._limits.in_flight

    def end(self, attempt: Attempt, outcome: Reply | Failure, now_s: float) -> list[Answer]:
        """Process the outcome of an attempt; return the answers that are final now."""
        assert attempt.reservation is not None
        if isinstance(outcome, Reply):
            return self._on_reply(attempt, outcome)
        attempt.cost_usd += self._limits.end(attempt.reservation, outcome.usage, outcome.maybe_charged)
        log.debug(f"clip {attempt.question.uid}: attempt {attempt.number}: {outcome.reason}")
        if outcome.kind is FailureKind.QUESTION:
            return self._release_with(self._answer(attempt, outcome))
        if outcome.kind not in (FailureKind.TRANSIENT, FailureKind.RATE_LIMIT):
            self._stop(outcome.reason)
        elif outcome.wait_s is not None and outcome.wait_s > MAX_REQUESTED_WAIT_S:
            self._stop(
                f"the server asks to wait {outcome.wait_s:.0f} s ({outcome.reason}); run again then: "
                "nothing is asked twice"
            )
        if self.stopped:
            return []
        if outcome.kind is FailureKind.RATE_LIMIT:
            self._pause(attempt.reservation.sent_at_s, now_s, outcome)
        if attempt.number > self._retries:
            return self._give_up(attempt, outcome)
        wait_s = max(backoff_s(attempt.number, attempt.question.key), outcome.wait_s or 0.0)
        retry = Attempt(now_s + wait_s, attempt.index, attempt.question, attempt.number + 1, attempt.cost_usd)
        heapq.heappush(self._to_retry, retry)
        return []

    def _on_reply(self, attempt: Attempt, reply: Reply) -> list[Answer]:
        assert attempt.reservation is not None
        attempt.cost_usd += self._limits.end(attempt.reservation, reply.usage, maybe_charged=reply.usage is None)
        self._limits.window.on_answer()
        self._limits.answers += 1
        if reply.usage is None and self._limits.budget_usd is not None:
            self._stop("the server reports no usage, so engine.budget_usd cannot be kept; leave it out for this server")
        return self._release_with(self._answer(attempt, reply))

    def _release_with(self, answer: Answer) -> list[Answer]:
        """Return the failures held back and this answer: the server works, so the run need not end for them."""
        released, self._held_failures = [*self._held_failures, answer], []
        return released

    def _give_up(self, attempt: Attempt, outcome: Failure) -> list[Answer]:
        """Hold a failure back until the next answer shows that the server works.

        If the server is down, the run ends. A failure that is released leaves its clip pending: the next run asks
        again.
        """
        if outcome.unreachable:
            self._stop(f"{outcome.reason}; run again when it is up: nothing is asked twice")
            return []
        self._held_failures.append(self._answer(attempt, outcome))
        if len(self._held_failures) >= MAX_CONSECUTIVE_FAILURES:
            self._stop(
                f"{len(self._held_failures)} questions in a row got no answer, the last: "
                f"{self._held_failures[-1].error}; run again when the server works: nothing is asked twice"
            )
            return []
        if self._n_started < len(self._questions) or self._n_open:
            return []
        released, self._held_failures = self._held_failures, []
        return released

    def _answer(self, attempt: Attempt, outcome: Reply | Failure) -> Answer:
        """Return the answer to the question of an attempt, or its error."""
        usage = outcome.usage
        question, text, truncated, error, may_pass = attempt.question, "", False, None, False
        if isinstance(outcome, Reply):
            text, truncated = outcome.text, outcome.truncated
        else:
            error = outcome.reason + (f" (after {attempt.number} attempts)" if attempt.number > 1 else "")
            may_pass = outcome.kind in (FailureKind.TRANSIENT, FailureKind.RATE_LIMIT)
        tokens_in, tokens_out = (usage.tokens_in, usage.tokens_out) if usage else (0, 0)
        costs = tokens_in, tokens_out, attempt.cost_usd
        return Answer(question.key, question.uid, text, truncated, *costs, error, may_pass)

    def _pause(self, sent_at_s: float, now_s: float, outcome: Failure) -> None:
        """Pause all requests after a refusal for too many, and log the first refusal of a pause."""
        pause_s = self._limits.window.on_refusal(sent_at_s, now_s, outcome.wait_s)
        if pause_s is not None:
            log.warning(
                f"{outcome.reason}: all requests pause for {pause_s:.1f} s; "
                f"then at most {self._limits.window.size} are in flight"
            )

    def _budget_error(self, question: Question) -> EngineError:
        limits = self._limits
        return EngineError(
            f"budget of ${limits.budget_usd:g} reached: {limits.answers} answers paid, ${limits.spent_usd:.6g} in all, "
            f"and the next may cost ${limits.max_cost_usd(question):.6g}; raise engine.budget_usd and run again: "
            "nothing is asked twice"
        )

    def _stop(self, reason: str) -> None:
        """End the run with its first reason. The next run asks the questions of held failures again."""
        self.stopped = self.stopped or EngineError(reason)
        self._held_failures = []
