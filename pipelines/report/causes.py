"""Causes: the fate of a row with its step and reason, in so few kinds that a page can list them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

MEASURED_NUMBERS = re.compile(r"\d+x\d+|\d+\.\d+")
"""Sizes and measured numbers in the reasons of steps such as encode, which differ from clip to clip."""


class Cause(NamedTuple):
    """A fate, the step that decided it and the kind of reason; for a failure, the class of the error."""

    fate: str
    step: str
    reason: str

    @property
    def is_loss(self) -> bool:
        return self.fate != "kept"


@lru_cache(maxsize=65536)
def cause_of(fate: str, step: str, reason: str) -> Cause:
    """Return the cause of a row from its fate columns.

    Reasons of `keep` stay whole: there is one for each side of each bound. A failure is reduced to the error's class,
    which precedes the first colon. A duplicate is reduced to its kind (near-duplicate, exact copy) without the file
    that it repeats.
    """
    if fate == "kept":
        return Cause(fate, "", "")
    if fate == "failed":
        return Cause(fate, step, error_class(reason))
    if fate == "duplicate":
        return Cause(fate, step, reason.partition(" of ")[0] or fate)
    return Cause(fate, step, reason if is_keep(step) else MEASURED_NUMBERS.sub("…", reason))


def error_class(reason: str) -> str:
    """Return `DecodeError` for `DecodeError: a.mp4: no frame`.

    If no class precedes a colon, return the first 80 characters of the reason.
    """
    name, colon, _ = reason.partition(":")
    return name.strip() if colon and re.fullmatch(r"[\w. -]{1,40}", name.strip()) else (reason[:80] or "no message")


def error_message(reason: str) -> str:
    """Return the part of the reason after the error's class."""
    name = error_class(reason)
    return reason.removeprefix(name).lstrip(": ") or reason


def is_keep(label: str) -> bool:
    """Return whether a label is that of a `keep` step."""
    return label.partition("#")[0] == "keep"
