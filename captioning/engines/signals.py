"""Engine `signals`: captions without a model, from measured columns and the caption that came with the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from captioning.engine import Answer, Captioner, CaptionerSettings, Question

VERSION = 2

DARK, BRIGHT = 0.25, 0.65
"""Mean luma in [0, 1] below which a clip is called dark, and above which it is called bright."""
MAX_STILL, MAX_SLOW, MAX_MODERATE = 0.003, 0.03, 0.2
"""Largest motion, as the scan measures it, of clips with no, slow and moderate motion; more is fast motion."""
MAX_SQUARE_ASPECT = 1.1
"""Largest ratio of the longer to the shorter side of a clip that is called square."""


class Signals(CaptionerSettings):
    """A deterministic captioner for smoke runs. Its captions only state measured columns."""

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
            sentences = (as_sentence(question.source_caption or ""), describe(question.columns))
            yield Answer(question.key, question.uid, " ".join(filter(None, sentences)))


def as_sentence(text: str) -> str:
    """Return the text with normalised white space and a full stop at its end."""
    text = " ".join(text.split())
    return text if not text or text[-1] in ".!?" else text + "."


def describe(columns: Mapping[str, Any]) -> str:
    """Return a sentence about measured columns, such as 'A bright landscape video with slow motion.'"""
    words = [_light(columns["luma"]), _shape(columns["width"] / columns["height"]), str(columns["kind"])]
    text = " ".join(word for word in words if word)
    article = "An" if text[0] in "aeiou" else "A"
    return f"{article} {text}{_motion(columns['motion'])}."


def _light(luma: float | None) -> str:
    if luma is None:
        return ""
    return "dark" if luma < DARK else "bright" if luma > BRIGHT else ""


def _shape(aspect: float) -> str:
    return "landscape" if aspect > MAX_SQUARE_ASPECT else "portrait" if aspect < 1 / MAX_SQUARE_ASPECT else "square"


def _motion(motion: float | None) -> str:
    if motion is None:
        return ""
    for limit, words in ((MAX_STILL, "no motion"), (MAX_SLOW, "slow motion"), (MAX_MODERATE, "motion")):
        if motion <= limit:
            return f" with {words}"
    return " with fast motion"
