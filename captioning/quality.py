"""What makes a caption unfit to train on."""

from __future__ import annotations

import re
from collections import Counter

REFUSALS = re.compile(r"^(i'?m sorry|i am sorry|sorry,|i can(?:no|')t|i am unable|i'm unable|as an ai\b)", re.IGNORECASE)
LOOP_WORDS = 4
LOOP_REPEATS = 4
LOOP_SHARE = 0.5
"""A run of this many words that comes this many times and makes up half of the caption is a model going in circles."""


def fault(caption: str) -> str | None:
    """Why a caption is unfit (empty, refused or looping), or None when it is fit."""
    text = caption.strip()
    if not re.search(r"\w", text):
        return "empty caption"
    if REFUSALS.match(text):
        return f"refused caption: {text[:80]!r}"
    words = text.lower().split()
    runs = Counter(tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1))
    for run, count in runs.most_common(1):
        if count >= LOOP_REPEATS and count * LOOP_WORDS >= LOOP_SHARE * len(words):
            return f"looping caption: {' '.join(run)!r} comes {count} times"
    return None
