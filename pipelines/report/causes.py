"""Why a row ended, in as few kinds as a reader can take in."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

VARIES = re.compile(r"\d+x\d+|\d+\.\d+")
"""Sizes and measured numbers in the reasons of steps such as encode, which differ from clip to clip."""
OTHER = "other reasons"


class Cause(NamedTuple):
    """A fate, the step that decided it and the kind of reason. Of a failure, that is the error's class."""

    fate: str
    step: str
    reason: str

    @property
    def is_loss(self) -> bool:
        return self.fate != "kept"


@lru_cache(maxsize=65536)
def cause_of(fate: str, step: str, reason: str) -> Cause:
    """The cause of a row from its fate columns.

    The reasons of `keep` are taken as they are: there are as many as bounds. Of an error the class is taken, which stands
    before the first colon; of a duplicate the kind (near-duplicate, exact copy), not the file that it repeats.
    """
    if fate == "kept":
        return Cause(fate, "", "")
    if fate == "failed":
        return Cause(fate, step, error_class(reason))
    if fate == "duplicate":
        return Cause(fate, step, reason.partition(" of ")[0] or fate)
    return Cause(fate, step, reason if is_keep(step) else VARIES.sub("…", reason))


def error_class(reason: str) -> str:
    """`DecodeError` of `DecodeError: a.mp4: no frame`; the whole reason, cut, where nothing like a class stands before a colon."""
    name, colon, _ = reason.partition(":")
    return name.strip() if colon and re.fullmatch(r"[\w. -]{1,40}", name.strip()) else (reason[:80] or "no message")


def error_message(reason: str) -> str:
    """What follows the class."""
    name = error_class(reason)
    return reason.removeprefix(name).lstrip(": ") or reason


def is_keep(label: str) -> bool:
    return label.partition("#")[0] == "keep"
