"""From what an engine said to captions and fields: strictly, and with a reason where it does not hold what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from captioning.prompt import Prompt

FENCE = re.compile(r"^```(?:json)?[ \t]*\n|\n```$")
"""Models wrap JSON in a block of Markdown whatever they are told; what is in it counts."""
LABEL = re.compile(r"^(?:caption|answer|output)\s*:\s*", re.IGNORECASE)


class UnfitAnswerError(ValueError):
    """The message begins with the class of the fault: truncated or malformed answer."""


@dataclass(frozen=True)
class ParsedAnswer:
    """Captions by name, in the prompt's order, and fields by name."""

    captions: dict[str, str]
    fields: dict[str, str] = field(default_factory=dict)


def parse(prompt: Prompt, text: str, truncated: bool = False) -> ParsedAnswer:
    """What an answer holds. White space is folded. Raises `UnfitAnswerError` for one that is cut off or not of the shape asked for."""
    if truncated:
        raise UnfitAnswerError(f"truncated answer: it was cut off at {prompt.max_tokens} tokens, after {text[-60:]!r}")
    text = text.strip()
    if prompt.answer == "text":
        return ParsedAnswer({prompt.main_kind: fold(_unwrapped(text))})
    values = _object(text)
    keys = [*prompt.fields, *prompt.captions]
    for key in keys:
        if key not in values:
            raise UnfitAnswerError(f"malformed answer: it has no '{key}'")
        if not isinstance(values[key], str):
            raise UnfitAnswerError(f"malformed answer: '{key}' is {type(values[key]).__name__}, not text")
    if unknown := sorted(set(values) - set(keys)):
        raise UnfitAnswerError(f"malformed answer: it has a key '{unknown[0][:40]}' that was not asked for")
    return ParsedAnswer(
        {name: fold(values[name]) for name in prompt.captions}, {name: fold(values[name]) for name in prompt.fields}
    )


def fold(text: str) -> str:
    """Text with all white space as single blanks."""
    return " ".join(text.split())


def _unwrapped(text: str) -> str:
    """A text without a label before it, or quotation marks around all of it."""
    text = LABEL.sub("", text)
    if len(text) > 1 and text[0] + text[-1] in ('""', "“”") and not re.search(r"[\"“”]", text[1:-1]):
        text = text[1:-1]
    return text


def _object(text: str) -> dict[str, Any]:
    text = FENCE.sub("", text).strip()
    if not text:
        raise UnfitAnswerError("malformed answer: it is empty")
    try:
        values = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        # A cut-off object fails at its end, or at the quotation mark of a string that never closes.
        cut_off = text.startswith("{") and (error.pos >= len(text) or error.msg.startswith("Unterminated string"))
        if cut_off:
            raise UnfitAnswerError(f"truncated answer: its JSON breaks off after {text[-60:]!r}") from None
        raise UnfitAnswerError(f"malformed answer: no JSON ({error.msg}): {text[:80]!r}") from None
    if not isinstance(values, dict):
        raise UnfitAnswerError(f"malformed answer: JSON, but no object: {text[:80]!r}")
    return values


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UnfitAnswerError("malformed answer: a key is given twice")
    return values
