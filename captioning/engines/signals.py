"""Captioner without a model: words from measured signals, after the caption that came with the source, if any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from captioning.engine import Answer, Captioner, CaptionerSettings, Question

VERSION = 2

DARK, BRIGHT = 0.25, 0.65
"""Mean luma in [0, 1] under which a clip is called dark, and over which bright."""
STILL, SLOW, FAST = 0.003, 0.03, 0.2
"""Motion, as the scan measures it, up to which a clip is called still, slow or moving; beyond, fast."""
LONG_ASPECT = 1.1
"""Ratio of the sides beyond which a picture is landscape or portrait rather than square."""


class Signals(CaptionerSettings):
    """Deterministic captions for smoke runs: they say what was measured and nothing else."""

    answers_prompts: ClassVar[bool] = False

    name: str = "signals"

    def reads(self) -> tuple[str, ...]:
        return "kind", "width", "height", "luma", "motion"

    def identity(self) -> str:
        return f"signals-v{VERSION}"

    def open(self) -> Captioner:
        return SignalsCaptioner()


class SignalsCaptioner(Captioner):
    """See `Signals`."""

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for question in questions:
            words = (sentence(question.source_caption or ""), describe(question.columns))
            yield Answer(question.key, question.uid, " ".join(filter(None, words)))


def sentence(text: str) -> str:
    """Text with white space folded and a full stop at its end."""
    text = " ".join(text.split())
    return text if not text or text[-1] in ".!?" else text + "."


def describe(columns: Mapping[str, Any]) -> str:
    """One sentence, say 'A bright landscape video with slow motion.'"""
    words = [_light(columns["luma"]), _shape(columns["width"] / columns["height"]), str(columns["kind"])]
    text = " ".join(word for word in words if word)
    article = "An" if text[0] in "aeiou" else "A"
    return f"{article} {text}{_motion(columns['motion'])}."


def _light(luma: float | None) -> str:
    if luma is None:
        return ""
    return "dark" if luma < DARK else "bright" if luma > BRIGHT else ""


def _shape(aspect: float) -> str:
    return "landscape" if aspect > LONG_ASPECT else "portrait" if aspect < 1 / LONG_ASPECT else "square"


def _motion(motion: float | None) -> str:
    if motion is None:
        return ""
    for limit, words in ((STILL, "no motion"), (SLOW, "slow motion"), (FAST, "motion")):
        if motion <= limit:
            return f" with {words}"
    return " with fast motion"
