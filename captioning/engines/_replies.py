"""What a server's reply to one request means: an answer, or a fault and whose it is. Pure; nothing is sent from here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any


class Fault(Enum):
    """Whose fault it is that there is no answer, and so what to do."""

    RETRY = "passing: ask again"
    SLOW = "too many requests: all wait, then ask again"
    QUESTION = "this question's: no other is touched"
    KEY = "the key is refused"
    CREDIT = "the account is empty"
    MODEL = "there is no such model"
    ADDRESS = "nothing answers chat completions there"


@dataclass(frozen=True)
class Usage:
    """Tokens that a server counted for one request."""

    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Reply:
    """An answer. `usage` is None where the server does not count."""

    text: str
    truncated: bool = False
    usage: Usage | None = None


@dataclass(frozen=True)
class Failure:
    """A request without an answer."""

    fault: Fault
    reason: str
    """Status and the server's own words, at their full length: whoever passes them on makes sure that no key is in them."""
    wait_s: float | None = None
    """How long the server asked to wait."""
    usage: Usage | None = None
    maybe_charged: bool = False
    """It may have been charged although no usage came back: the server had the request, and its reply was lost or made no sense."""
    unreachable: bool = False
    """There was not even a connection."""


def read(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Reply | Failure:
    """The meaning of an HTTP response. `headers` are looked up as written here, so give a mapping that ignores case.

    Statuses as in OpenAI's and vLLM's error documents; an error that arrives with status 200 and a status in its `code`, as some gateways
    send it, counts as that status. `now` is used for a Retry-After that is a date, where the response has no Date of its own.
    """
    data = _object(body)
    error = _error(data, status)
    code = error.get("code") if error else None
    if status == 200 and isinstance(code, int) and 400 <= code < 600:
        status = code
    if 200 <= status < 300 and error is None:
        return _completion(data)
    message = " ".join(str(error["message"] if error else body.decode("utf-8", "replace")).split())
    reason = f"HTTP {status}" + (f": {message}" if message else "")
    if status == 429 or status == 402:
        empty = status == 402 or "insufficient_quota" in (code, (error or {}).get("type"))
        return Failure(Fault.CREDIT if empty else Fault.SLOW, reason, retry_after_s(headers, now))
    if status in (408, 409) or status >= 500 or 200 <= status < 300:
        # A gateway that lost patience says nothing of what the server behind it went on to do.
        return Failure(Fault.RETRY, reason, retry_after_s(headers, now), maybe_charged=status < 300 or status == 504)
    return Failure(_refusal(status, error), reason)


def _refusal(status: int, error: Mapping[str, Any] | None) -> Fault:
    if status in (401, 403):
        # OpenRouter's 403 for a picture that its moderation flagged says so in the metadata.
        metadata = error.get("metadata") if error else None
        return Fault.QUESTION if isinstance(metadata, dict) and "flagged_input" in metadata else Fault.KEY
    if status == 404 and error is not None:
        return Fault.MODEL if "model" in str(error["message"]).lower() else Fault.QUESTION
    return Fault.ADDRESS if status in (404, 405, 407) or status < 400 else Fault.QUESTION


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _error(data: Mapping[str, Any], status: int) -> dict[str, Any] | None:
    """The error object, which servers write as `{"error": {...}}`, `{"error": "..."}` or, older vLLM, without a wrapper; None for none."""
    error = data.get("error")
    if isinstance(error, str):
        return {"message": error}
    if isinstance(error, dict):
        return {**error, "message": error.get("message") or ""}
    return dict(data) if status != 200 and isinstance(data.get("message"), str) else None


def _completion(data: Mapping[str, Any]) -> Reply | Failure:
    usage = _usage(data.get("usage"))
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message, ended = choice.get("message"), choice.get("finish_reason")
    content = message.get("content") if isinstance(message, dict) else None
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if ended == "content_filter":
        return Failure(
            Fault.QUESTION, "the server's content filter withheld the answer", usage=usage, maybe_charged=usage is None
        )
    if not isinstance(content, str) and isinstance(message, dict):
        # A model that thinks may spend all its tokens on that; asked again, it would again.
        content = refusal if isinstance(refusal, str) else "" if ended == "length" else None
    if not isinstance(content, str) or ended in ("abort", "error"):
        what = f"finish_reason {ended!r}" if ended in ("abort", "error") else "no choices with a message in words"
        return Failure(Fault.RETRY, f"not a chat completion: {what}", usage=usage, maybe_charged=usage is None)
    # JSON can hold half a surrogate pair, which no table can.
    return Reply(content.encode("utf-8", "replace").decode("utf-8"), ended == "length", usage)


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, dict):
        return None
    counts = [n for n in (value.get("prompt_tokens"), value.get("completion_tokens", 0)) if type(n) is int and n >= 0]
    return Usage(*counts) if len(counts) == 2 else None


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: seconds or a date), never below 0; None where it says nothing that can be read.

    A date is measured against the response's own Date, so that clocks that differ do no harm.
    """
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        until = _date(text)
        return None if until is None else max(0.0, (until - (_date(headers.get("Date", "")) or now)).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
