"""Parse the answers of engines into captions and fields, strictly, with a reason if an answer is malformed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from captioning.cleaning import UnfitAnswerError, answer_body, clean_caption, one_line
from captioning.prompt import Prompt

LABEL = re.compile(r"^(?:caption|answer|output)\s*:\s*", re.IGNORECASE)
"""Label that models write before a text answer."""


@dataclass(frozen=True)
class ParsedAnswer:
    """Captions by kind, in the order of the prompt, and fields by name."""

    captions: dict[str, str]
    fields: dict[str, str] = field(default_factory=dict)


def parse(prompt: Prompt, text: str, truncated: bool = False) -> ParsedAnswer:
    """Return the captions and fields of an answer, cleaned (`captioning.cleaning`).

    Raises `UnfitAnswerError` if the answer is truncated or does not have the shape that the prompt requests.
    """
    if truncated:
        raise UnfitAnswerError(f"truncated answer: it was cut off at {prompt.max_tokens} tokens, after {text[-60:]!r}")
    if prompt.answer == "text":
        return ParsedAnswer({prompt.main_kind: one_line(_without_label_and_quotes(clean_caption(text)))})
    values = _parse_object(answer_body(text))
    keys = [*prompt.fields, *prompt.captions]
    for key in keys:
        if key not in values:
            raise UnfitAnswerError(f"malformed answer: it has no '{key}'")
        if not isinstance(values[key], str):
            raise UnfitAnswerError(f"malformed answer: '{key}' is {type(values[key]).__name__}, not text")
    if unknown := sorted(set(values) - set(keys)):
        raise UnfitAnswerError(f"malformed answer: it has a key '{unknown[0][:40]}' that was not requested")
    return ParsedAnswer(
        {kind: one_line(values[kind]) for kind in prompt.captions},
        {name: one_line(values[name]) for name in prompt.fields},
    )


def _without_label_and_quotes(text: str) -> str:
    """Return the text without a label before it, and without quotation marks around the whole of it."""
    text = LABEL.sub("", text)
    if len(text) > 1 and text[0] + text[-1] in ('""', "“”") and not re.search(r"[\"“”]", text[1:-1]):
        text = text[1:-1]
    return text


def _parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `UnfitAnswerError` if the text is not one."""
    if not text:
        raise UnfitAnswerError("malformed answer: it is empty")
    try:
        values = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except UnfitAnswerError:
        raise
    except json.JSONDecodeError as error:
        # The error of a truncated object is at its end, or at the quotation mark of a string that is never closed.
        truncated = text.startswith("{") and (error.pos >= len(text) or error.msg.startswith("Unterminated string"))
        if truncated:
            raise UnfitAnswerError(f"truncated answer: its JSON breaks off after {text[-60:]!r}") from None
        raise UnfitAnswerError(f"malformed answer: not JSON ({error.msg}): {text[:80]!r}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise UnfitAnswerError(f"malformed answer: not JSON ({error}): {text[:80]!r}") from None
    if not isinstance(values, dict):
        raise UnfitAnswerError(f"malformed answer: JSON, but not an object: {text[:80]!r}")
    return values


def _refuse_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UnfitAnswerError("malformed answer: it has a key twice")
    return values
