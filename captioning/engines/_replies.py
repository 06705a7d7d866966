"""Interpret the reply of a server to one request: an answer, or a failure with its kind. Sends nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any

from captioning.cleaning import storable


class FailureKind(Enum):
    """Kind of a failure, which decides what happens next.

    The first two are retried, `QUESTION` fails one question, and all others end the run.
    """

    TRANSIENT = auto()
    RATE_LIMIT = auto()
    """Too many requests: all requests pause."""
    QUESTION = auto()
    """The server refuses this question; other questions are unaffected."""
    API_KEY = auto()
    NO_CREDIT = auto()
    UNKNOWN_MODEL = auto()
    WRONG_ADDRESS = auto()
    """Nothing answers chat completions at the address."""


@dataclass(frozen=True)
class Usage:
    """Tokens that a server counted for one request."""

    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Reply:
    """A request with an answer. `usage` is None if the server counts no tokens."""

    text: str
    truncated: bool = False
    usage: Usage | None = None


@dataclass(frozen=True)
class Failure:
    """A request without an answer."""

    kind: FailureKind
    reason: str
    """Status and message of the server at full length. The caller has to remove the API key from it."""
    wait_s: float | None = None
    """Seconds that the server asks to wait."""
    usage: Usage | None = None
    maybe_charged: bool = False
    """Whether the request may have been charged without a usage: the server received it, and its reply was lost or made
    no sense."""
    unreachable: bool = False
    """Whether no connection could be opened."""


def read_reply(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Reply | Failure:
    """Interpret an HTTP response.

    `headers` has to ignore case. Statuses mean what the error documentation of OpenAI and vLLM says. Some gateways send
    errors with status 200 and another status in `code`, which then counts. `now` serves for a Retry-After that is a
    date, if the response has no Date.
    """
    data = _parse_object(body)
    error = _error(data, status)
    code = error.get("code") if error else None
    if status == 200 and isinstance(code, int) and 400 <= code < 600:
        status = code
    if 200 <= status < 300 and error is None:
        return _read_completion(data)
    message = " ".join(str(error["message"] if error else body.decode("utf-8", "replace")).split())
    reason = f"HTTP {status}" + (f": {message}" if message else "")
    if status == 429 or status == 402:
        no_credit = status == 402 or "insufficient_quota" in (code, (error or {}).get("type"))
        kind = FailureKind.NO_CREDIT if no_credit else FailureKind.RATE_LIMIT
        return Failure(kind, reason, retry_after_s(headers, now))
    if status in (408, 409) or status >= 500 or 200 <= status < 300:
        # After a gateway time-out (504) the server behind the gateway may still have answered, and charged for it.
        maybe_charged = status < 300 or status == 504
        return Failure(FailureKind.TRANSIENT, reason, retry_after_s(headers, now), maybe_charged=maybe_charged)
    return Failure(_refusal_kind(status, error), reason)


def _refusal_kind(status: int, error: Mapping[str, Any] | None) -> FailureKind:
    """Return the kind of a failure that a retry cannot fix."""
    if status in (401, 403):
        # OpenRouter's 403 for an image that its moderation flagged says so in the metadata.
        metadata = error.get("metadata") if error else None
        is_flagged = isinstance(metadata, dict) and "flagged_input" in metadata
        return FailureKind.QUESTION if is_flagged else FailureKind.API_KEY
    if status == 404 and error is not None:
        names_model = "model" in str(error["message"]).lower()
        return FailureKind.UNKNOWN_MODEL if names_model else FailureKind.QUESTION
    return FailureKind.WRONG_ADDRESS if status in (404, 405, 407) or status < 400 else FailureKind.QUESTION


def _parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; anything else gives an empty one."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _error(data: Mapping[str, Any], status: int) -> dict[str, Any] | None:
    """Return the error object of a body, or None if it has none.

    Servers write `{"error": {...}}` or `{"error": "..."}`; older versions of vLLM write the error without a wrapper.
    """
    error = data.get("error")
    if isinstance(error, str):
        return {"message": error}
    if isinstance(error, dict):
        return {**error, "message": error.get("message") or ""}
    return dict(data) if status != 200 and isinstance(data.get("message"), str) else None


def _read_completion(data: Mapping[str, Any]) -> Reply | Failure:
    """Interpret the body of a successful response."""
    usage = _read_usage(data.get("usage"))
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message, finish_reason = choice.get("message"), choice.get("finish_reason")
    content = message.get("content") if isinstance(message, dict) else None
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if finish_reason == "content_filter":
        reason = "the content filter of the server withheld the answer"
        return Failure(FailureKind.QUESTION, reason, usage=usage, maybe_charged=usage is None)
    if not isinstance(content, str) and isinstance(message, dict):
        # A reasoning model may spend all tokens on its reasoning. A retry would do the same, so the answer is empty.
        content = refusal if isinstance(refusal, str) else "" if finish_reason == "length" else None
    was_aborted = finish_reason in ("abort", "error")
    if not isinstance(content, str) or was_aborted:
        cause = f"finish_reason {finish_reason!r}" if was_aborted else "no choice with a text message"
        reason = f"not a chat completion: {cause}"
        return Failure(FailureKind.TRANSIENT, reason, usage=usage, maybe_charged=usage is None)
    # JSON may contain half a surrogate pair or NUL, which tables and trackers cannot store.
    return Reply(storable(content), finish_reason == "length", usage)


def _read_usage(value: Any) -> Usage | None:
    """Return the usage in a body, or None if it is missing or not a pair of counts."""
    if not isinstance(value, dict):
        return None
    counts = [n for n in (value.get("prompt_tokens"), value.get("completion_tokens", 0)) if type(n) is int and n >= 0]
    return Usage(*counts) if len(counts) == 2 else None


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that the server asks to wait, at least 0, or None if there is no readable Retry-After.

    Retry-After is a number of seconds or a date (RFC 9110, 10.2.3). A date is compared with the Date of the response,
    so that differing clocks do no harm.
    """
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        until = _parse_date(text)
        if until is None:
            return None
        return max(0.0, (until - (_parse_date(headers.get("Date", "")) or now)).total_seconds())


def _parse_date(text: str) -> datetime | None:
    """Parse a date of an HTTP header; None if it is not one."""
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
