"""Limits on the requests to a server: concurrency, pauses, rates and budget. The time is an argument in seconds."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass

from captioning.engine import Question
from captioning.engines._replies import Usage

MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
TEMPLATE_TOKENS = 64
"""Number of tokens reserved for what the chat template adds to a question."""


def backoff_s(attempts: int, *key: object) -> float:
    """Return the seconds to wait after this many failed attempts: 1, 2, 4 ... 60, times a factor in [0.5, 1).

    The factor follows from `key`. Doubling with jitter keeps requests that failed together from returning together (AWS
    Builders' Library, "Timeouts, retries and backoff with jitter").
    """
    ceiling = min(MAX_BACKOFF_S, math.ldexp(MIN_BACKOFF_S, min(attempts - 1, 10)))
    return ceiling * random.Random(repr((attempts, *key))).uniform(0.5, 1.0)


class RateLimit:
    """A limit on an amount per minute, spread evenly. None: no limit.

    Each amount delays the next start by its share of a minute. So the amounts that start in any minute exceed the limit
    by at most one.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._s_per_unit = 60.0 / per_minute if per_minute else 0.0
        self._next_start_s = -math.inf

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the next start is allowed."""
        return max(0.0, self._next_start_s - now_s)

    def take(self, amount: float, now_s: float) -> None:
        """Count an amount that starts now."""
        if self._s_per_unit:
            self._next_start_s = max(self._next_start_s, now_s) + amount * self._s_per_unit

    def correct(self, amount: float) -> None:
        """Add the difference by which an amount taken before turned out to be larger; negative if smaller."""
        self._next_start_s += amount * self._s_per_unit


class ConcurrencyWindow:
    """A limit on the requests in flight that adapts to refusals for too many requests.

    A refusal pauses all starts and halves the limit; answers raise it again, up to `max_size`. This is the rule of TCP
    congestion control (RFC 5681): after a pause alone, the rush that was refused would return.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size, self._size = max_size, float(max_size)
        self._pause_end_s, self._consecutive_refusals = -math.inf, 0

    @property
    def size(self) -> int:
        """Largest number of requests in flight."""
        return max(1, int(self._size))

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the end of the pause."""
        return max(0.0, self._pause_end_s - now_s)

    def on_answer(self) -> None:
        """Raise the limit after an answer."""
        self._consecutive_refusals = 0
        self._size = min(self._max_size, self._size + 1 / self._size)

    def on_refusal(self, sent_at_s: float, now_s: float, requested_wait_s: float | None) -> float | None:
        """Return the seconds of the pause that a refusal starts.

        None: the request was sent before the current pause began, so its refusal at most extends this pause.
        """
        if sent_at_s < self._pause_end_s:
            self._pause_end_s = max(self._pause_end_s, now_s + (requested_wait_s or 0.0))
            return None
        self._consecutive_refusals += 1
        self._size = max(1.0, self._size / 2)
        pause_s = backoff_s(self._consecutive_refusals, "pause") if requested_wait_s is None else requested_wait_s
        self._pause_end_s = now_s + pause_s
        return pause_s


class UsageEstimate:
    """An upper estimate of the tokens of a question.

    The bytes of the text are an upper bound for every byte-level tokenizer. Images count as the most tokens per image
    in the answers so far.
    """

    def __init__(self) -> None:
        self._tokens_per_image: float | None = None

    def is_known(self, question: Question) -> bool:
        """Return False for a question with images before the first answer about images."""
        return not question.images or self._tokens_per_image is not None

    def usage(self, question: Question) -> Usage:
        """Return the estimate for a question."""
        schema = json.dumps(question.json_schema) if question.json_schema else ""
        n_bytes = len((question.system + question.text + schema).encode("utf-8", "replace"))
        image_tokens = math.ceil(len(question.images) * (self._tokens_per_image or 0.0))
        return Usage(n_bytes + TEMPLATE_TOKENS + image_tokens, question.max_tokens)

    def update(self, question: Question, usage: Usage) -> None:
        """Update the estimate with the usage that the server reports for a question."""
        if question.images:
            self._tokens_per_image = max(self._tokens_per_image or 0.0, usage.tokens_in / len(question.images))


@dataclass(frozen=True)
class Reservation:
    """The largest usage and cost of a request in flight, which the limits count until its outcome is known."""

    question: Question
    usage: Usage
    cost_usd: float
    sent_at_s: float


class Limits:
    """All limits of one engine, over all its questions.

    Prices are in USD per million tokens. Call `start` when `wait_s` is 0, and `end` with the outcome of the request.
    """

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
        self.window = ConcurrencyWindow(concurrency)
        self.spent_usd, self.answers, self.in_flight = 0.0, 0, 0
        self._requests, self._tokens = RateLimit(requests_per_minute), RateLimit(tokens_per_minute)
        self._usd_per_token_in, self._usd_per_token_out = price_in / 1e6, price_out / 1e6
        self._reserved_usd = 0.0
        self._estimate = UsageEstimate()
        self._needs_estimate = budget_usd is not None or tokens_per_minute is not None

    def wait_s(self, question: Question, now_s: float) -> float:
        """Return the seconds until a question may be sent.

        The wait is infinite until a request in flight ends, or, if none is in flight, because the budget is reached.
        """
        is_full = self.in_flight >= self.window.size
        if self.in_flight and (is_full or (self._needs_estimate and not self._estimate.is_known(question))):
            return math.inf
        max_spent_usd = self.spent_usd + self._reserved_usd + self.max_cost_usd(question)
        if self.budget_usd is not None and max_spent_usd > self.budget_usd:
            return math.inf
        return max(self.window.wait_s(now_s), self._requests.wait_s(now_s), self._tokens.wait_s(now_s))

    def max_cost_usd(self, question: Question) -> float:
        """Return the largest cost of a question."""
        return self._cost_usd(self._estimate.usage(question))

    def start(self, question: Question, now_s: float) -> Reservation:
        """Count a request that is sent now, at its largest usage and cost."""
        reservation = Reservation(question, self._estimate.usage(question), self.max_cost_usd(question), now_s)
        self._requests.take(1, now_s)
        self._tokens.take(reservation.usage.tokens_in + reservation.usage.tokens_out, now_s)
        self._reserved_usd += reservation.cost_usd
        self.in_flight += 1
        return reservation

    def end(self, reservation: Reservation, usage: Usage | None, maybe_charged: bool) -> float:
        """Replace a reservation by the outcome of its request; return the cost in USD.

        Without a usage, a request that may have been charged costs all that was reserved.
        """
        self.in_flight -= 1
        # Repeated sums and differences drift; without requests in flight nothing is reserved.
        self._reserved_usd = self._reserved_usd - reservation.cost_usd if self.in_flight else 0.0
        cost_usd = reservation.cost_usd if maybe_charged else 0.0
        if usage is not None:
            self._estimate.update(reservation.question, usage)
            reserved = reservation.usage
            self._tokens.correct(usage.tokens_in + usage.tokens_out - reserved.tokens_in - reserved.tokens_out)
            cost_usd = self._cost_usd(usage)
        self.spent_usd += cost_usd
        return cost_usd

    def abandon(self) -> None:
        """Count all requests in flight as charged, because their outcomes will not be read."""
        self.spent_usd += self._reserved_usd
        self.in_flight, self._reserved_usd = 0, 0.0

    def _cost_usd(self, usage: Usage) -> float:
        return usage.tokens_in * self._usd_per_token_in + usage.tokens_out * self._usd_per_token_out
