"""Which question is sent when, again or for the last time, and when all of it stops. Pure: time and outcomes come in, tries and answers go out."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from captioning.engine import Answer, EngineError, Question
from captioning.engines._limits import Hold, Limits, backoff_s
from captioning.engines._replies import Failure, Fault, Reply
from cluster.telemetry import log

LONGEST_WAIT_S = 900.0
"""A server that asks for more patience than this is left alone until the next run."""
MOST_LOST = 8
"""After this many questions in a row that came to nothing, every try used up, it is the server that is ill and not the questions."""


@dataclass(order=True)
class Try:
    """A question on its way, or on its way back."""

    due_s: float
    index: int
    question: Question = field(compare=False)
    number: int = field(default=1, compare=False)
    cost_usd: float = field(default=0.0, compare=False)
    """Of the tries before."""
    hold: Hold | None = field(default=None, compare=False)


class Schedule:
    """Each question is answered once, or fails once with its reason, or is left unanswered because `stopped` says why nothing can go on.

    Call `next` until it gives no try, and `end` for every try it gave. Once stopped nothing new is started, and what is in flight is waited
    for: it is paid for.
    """

    def __init__(self, questions: Sequence[Question], limits: Limits, retries: int) -> None:
        self._questions, self._limits, self._retries = questions, limits, retries
        self._begun = 0
        self._again: list[Try] = []
        self._lost: list[Answer] = []
        self.stopped: EngineError | None = None

    def next(self, now_s: float) -> Try | float | None:
        """The try to send now; or the seconds until there may be one, infinite where only an outcome can bring it; or None: all is done."""
        if self.stopped:
            return math.inf if self._limits.in_flight else None
        again = bool(self._again) and self._again[0].due_s <= now_s
        if not again and (self._begun == len(self._questions) or self._open >= self._limits.concurrency):
            if self._again:
                return self._again[0].due_s - now_s
            return math.inf if self._limits.in_flight else None
        attempt = self._again[0] if again else Try(now_s, self._begun, self._questions[self._begun])
        if wait_s := self._limits.wait_s(attempt.question, now_s):
            if wait_s == math.inf and not self._limits.in_flight:
                self.stopped = self._over_budget(attempt.question)
                return None
            return wait_s
        if again:
            heapq.heappop(self._again)
        else:
            self._begun += 1
        attempt.hold = self._limits.start(attempt.question, now_s)
        return attempt

    @property
    def _open(self) -> int:
        return len(self._again) + self._limits.in_flight

    def end(self, attempt: Try, outcome: Reply | Failure, now_s: float) -> list[Answer]:
        """Takes what came of a try, and gives the answers that are final with it."""
        assert attempt.hold is not None
        sent_at_s = attempt.hold.sent_at_s
        if isinstance(outcome, Reply):
            attempt.cost_usd += self._limits.end(attempt.hold, outcome.usage, maybe_charged=outcome.usage is None)
            self._limits.window.answered()
            self._limits.answers += 1
            if outcome.usage is None and self._limits.budget_usd is not None:
                self._stop(
                    "the server reports no usage, so engine.budget_usd cannot be kept; leave it out for this server"
                )
            return self._found(self._answer(attempt, outcome))
        attempt.cost_usd += self._limits.end(attempt.hold, outcome.usage, outcome.maybe_charged)
        log.debug(f"clip {attempt.question.uid}: try {attempt.number}: {outcome.reason}")
        if outcome.fault is Fault.QUESTION:
            return self._found(self._answer(attempt, outcome))
        if outcome.fault not in (Fault.RETRY, Fault.SLOW):
            self._stop(outcome.reason)
        elif outcome.wait_s is not None and outcome.wait_s > LONGEST_WAIT_S:
            self._stop(
                f"the server asks to wait {outcome.wait_s:.0f} s ({outcome.reason}); run again then: nothing is asked twice"
            )
        if self.stopped:
            return []
        if outcome.fault is Fault.SLOW:
            self._pause(sent_at_s, now_s, outcome)
        if attempt.number > self._retries:
            return self._give_up(attempt, outcome)
        wait_s = max(backoff_s(attempt.number, attempt.question.key), outcome.wait_s or 0.0)
        again = Try(now_s + wait_s, attempt.index, attempt.question, attempt.number + 1, attempt.cost_usd)
        heapq.heappush(self._again, again)
        return []

    def _found(self, answer: Answer) -> list[Answer]:
        """What was lost before is settled with it: the server is well."""
        settled, self._lost = [*self._lost, answer], []
        return settled

    def _give_up(self, attempt: Try, outcome: Failure) -> list[Answer]:
        """Holds the failure back until it is known whether it is the server's: clips are not to be marked as failed because that is down."""
        if outcome.unreachable:
            self._stop(f"{outcome.reason}; run again when it is up: nothing is asked twice")
            return []
        self._lost.append(self._answer(attempt, outcome))
        if len(self._lost) >= MOST_LOST:
            last = self._lost[-1].error
            self._stop(
                f"{len(self._lost)} questions in a row got no answer, the last: {last}; run again when the server is well: nothing is asked twice"
            )
            return []
        done = self._begun == len(self._questions) and not self._open
        settled, self._lost = (self._lost, []) if done else ([], self._lost)
        return settled

    def _answer(self, attempt: Try, outcome: Reply | Failure) -> Answer:
        usage = outcome.usage
        question, text, truncated, error = attempt.question, "", False, None
        if isinstance(outcome, Reply):
            text, truncated = outcome.text, outcome.truncated
        else:
            error = outcome.reason + (f" (after {attempt.number} tries)" if attempt.number > 1 else "")
        tokens_in, tokens_out = (usage.tokens_in, usage.tokens_out) if usage else (0, 0)
        return Answer(question.key, question.uid, text, truncated, tokens_in, tokens_out, attempt.cost_usd, error)

    def _pause(self, sent_at_s: float, now_s: float, outcome: Failure) -> None:
        pause_s = self._limits.window.refused(sent_at_s, now_s, outcome.wait_s)
        if pause_s is not None:
            log.warning(
                f"{outcome.reason}: all requests pause for {pause_s:.1f} s, then at most {self._limits.window.size} at once"
            )

    def _over_budget(self, question: Question) -> EngineError:
        limits = self._limits
        return EngineError(
            f"budget of ${limits.budget_usd:g} reached: {limits.answers} answers paid, ${limits.spent_usd:.6g} in all, and the next may cost "
            f"${limits.most_usd(question):.6g}; raise engine.budget_usd and run again: nothing is asked twice"
        )

    def _stop(self, reason: str) -> None:
        # The first reason is the one that counts; what was held back is asked again by the next run.
        self.stopped = self.stopped or EngineError(reason)
        self._lost = []
