"""How fast and how dearly a server may be asked: width, pauses, rates, budget. Pure: the time comes in as a number of seconds."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass

from captioning.engine import Question
from captioning.engines._replies import Usage

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
TEMPLATE_TOKENS = 64
"""Allowance for what a chat template puts around the words."""


def backoff_s(tries: int, *key: object) -> float:
    """Seconds to wait after this many tries without an answer: 1, 2, 4 … 60, each times a number in [0.5, 1) that follows from `key`.

    Doubling with jitter, so that those who failed together do not come back together (AWS Builders' Library, "Timeouts, retries and
    backoff with jitter").
    """
    ceiling = min(LONGEST_BACKOFF_S, math.ldexp(FIRST_BACKOFF_S, min(tries - 1, 10)))
    return ceiling * random.Random(repr((tries, *key))).uniform(0.5, 1.0)


class Rate:
    """An even pace: what is taken moves the next start on by its share of a minute, so no minute starts more than a minute's worth and one."""

    def __init__(self, per_minute: float | None) -> None:
        self._s_each = 60.0 / per_minute if per_minute else 0.0
        self._free_at_s = -math.inf

    def wait_s(self, now_s: float) -> float:
        return max(0.0, self._free_at_s - now_s)

    def take(self, amount: float, now_s: float) -> None:
        if self._s_each:
            self._free_at_s = max(self._free_at_s, now_s) + amount * self._s_each

    def correct(self, amount: float) -> None:
        """What was taken turned out to be this much more (less, if negative)."""
        self._free_at_s += amount * self._s_each


class Window:
    """How many requests may be in flight. A refusal for too many stops all starts for a while and halves it, answers widen it again.

    The rule of TCP's congestion control (RFC 5681): a pause alone would end in the same rush that was refused.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size = most, float(most)
        self._until_s, self._in_a_row = -math.inf, 0

    @property
    def size(self) -> int:
        return max(1, int(self._size))

    def wait_s(self, now_s: float) -> float:
        return max(0.0, self._until_s - now_s)

    def answered(self) -> None:
        self._in_a_row = 0
        self._size = min(self._most, self._size + 1 / self._size)

    def refused(self, sent_at_s: float, now_s: float, asked_s: float | None) -> float | None:
        """Seconds of the pause that begins with this refusal; None where the request was under way when the last pause was called."""
        if sent_at_s < self._until_s:
            self._until_s = max(self._until_s, now_s + (asked_s or 0.0))
            return None
        self._in_a_row += 1
        self._size = max(1.0, self._size / 2)
        pause_s = backoff_s(self._in_a_row, "pause") if asked_s is None else asked_s
        self._until_s = now_s + pause_s
        return pause_s


class Expected:
    """The most tokens that a question may take: words by their bytes, which no byte-level tokenizer exceeds; pictures by the most seen so far."""

    def __init__(self) -> None:
        self._each_picture: float | None = None

    def known(self, question: Question) -> bool:
        """False for one with pictures as long as no answer told what a picture takes."""
        return not question.images or self._each_picture is not None

    def usage(self, question: Question) -> Usage:
        schema = json.dumps(question.json_schema) if question.json_schema else ""
        words = len((question.system + question.text + schema).encode("utf-8", "replace")) + TEMPLATE_TOKENS
        return Usage(words + math.ceil(len(question.images) * (self._each_picture or 0.0)), question.max_tokens)

    def learn(self, question: Question, usage: Usage) -> None:
        if question.images:
            self._each_picture = max(self._each_picture or 0.0, usage.tokens_in / len(question.images))


@dataclass(frozen=True)
class Hold:
    """What is set aside for one request in flight: the most it may take."""

    question: Question
    usage: Usage
    cost_usd: float
    sent_at_s: float


class Limits:
    """All that one engine keeps to, over all its questions. `wait_s`, then `start` at once, then `end`."""

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        price_in: float = 0.0,
        price_out: float = 0.0,
        budget_usd: float | None = None,
    ) -> None:
        self.concurrency, self.budget_usd = concurrency, budget_usd
        self.window = Window(concurrency)
        self.spent_usd, self.answers, self.in_flight = 0.0, 0, 0
        self._requests, self._tokens = Rate(requests_per_minute), Rate(tokens_per_minute)
        self._usd_in, self._usd_out = price_in / 1e6, price_out / 1e6
        self._held_usd = 0.0
        self._expected = Expected()
        self._counted = budget_usd is not None or tokens_per_minute is not None

    def wait_s(self, question: Question, now_s: float) -> float:
        """0 where the question may be sent now; else the seconds to wait; infinite: until one in flight is back, or the budget is raised."""
        if self.in_flight and (
            self.in_flight >= self.window.size or (self._counted and not self._expected.known(question))
        ):
            return math.inf
        if self.budget_usd is not None and self.spent_usd + self._held_usd + self.most_usd(question) > self.budget_usd:
            return math.inf
        return max(self.window.wait_s(now_s), self._requests.wait_s(now_s), self._tokens.wait_s(now_s))

    def most_usd(self, question: Question) -> float:
        return self._cost_usd(self._expected.usage(question))

    def start(self, question: Question, now_s: float) -> Hold:
        hold = Hold(question, self._expected.usage(question), self.most_usd(question), now_s)
        self._requests.take(1, now_s)
        self._tokens.take(hold.usage.tokens_in + hold.usage.tokens_out, now_s)
        self._held_usd += hold.cost_usd
        self.in_flight += 1
        return hold

    def end(self, hold: Hold, usage: Usage | None, maybe_charged: bool) -> float:
        """What the request cost in USD: its usage, or all that was held where it may have been charged and no usage came back."""
        self.in_flight -= 1
        # Sums of what comes and goes drift; nothing in flight is nothing held.
        self._held_usd = self._held_usd - hold.cost_usd if self.in_flight else 0.0
        cost_usd = hold.cost_usd if maybe_charged else 0.0
        if usage is not None:
            self._expected.learn(hold.question, usage)
            self._tokens.correct(usage.tokens_in + usage.tokens_out - hold.usage.tokens_in - hold.usage.tokens_out)
            cost_usd = self._cost_usd(usage)
        self.spent_usd += cost_usd
        return cost_usd

    def abandon(self) -> None:
        """Nothing is waited for any longer; what was in flight may have been charged."""
        self.spent_usd += self._held_usd
        self.in_flight, self._held_usd = 0, 0.0

    def _cost_usd(self, usage: Usage) -> float:
        return usage.tokens_in * self._usd_in + usage.tokens_out * self._usd_out
