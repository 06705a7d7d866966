"""Short prompt to detailed prompt, in the style of the captions a model was trained on, as the Sora report has GPT do it.

By any engine that answers without pictures, or, without one, by a rule: what recurs in training captions is put after the prompt.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from captioning import quality
from captioning.dialogue.answers import UnfitAnswerError, parse
from captioning.dialogue.conversation import RETRY_TEMPERATURE
from captioning.engine import FOLDER, CaptionerSettings, EngineError, Question
from captioning.language import LANGUAGES, check_code
from captioning.prompt import UPSAMPLES, FromFile, Prompt, load_prompt
from cluster.config import Settings
from cluster.plugins import Chosen
from cluster.storage import digest

SENTENCE = re.compile(r"[^.!?]+[.!?]+")
RECURS = 0.02
"""A sentence that stands in at least this share of training captions, and in two, is about the manner of the footage and not about one clip."""

RULE_VERSION = 1


class UpsampleSettings(Settings):
    """How short prompts are made detailed where a sample asks for it: section `upsample` of a recipe."""

    engine: Annotated[CaptionerSettings, Chosen(FOLDER, CaptionerSettings)] | None = Field(
        None,
        description="Engine that writes the detailed prompt from words alone; without one a rule does, which knows no meanings.",
    )
    prompt: Annotated[Prompt, FromFile("upsamples")] = Field(
        default_factory=lambda: load_prompt("upsample", UPSAMPLES),
        description="How it is asked: name of a prompt or path of a .yaml file.",
    )
    examples: int = Field(
        4, ge=0, le=64, description="Training captions that are shown as examples: those most like the prompt."
    )
    language: str = Field("en", description="Language of the detailed prompt, as ISO 639-1 code.")
    retries: int = Field(1, ge=0, le=8, description="How often an unfit answer is asked for again, with another seed.")

    _known_language = field_validator("language")(check_code)

    @model_validator(mode="after")
    def _engine_writes(self) -> UpsampleSettings:
        if self.engine is not None and not self.engine.sees:
            raise ValueError(
                f"engine {self.engine.name} only says what was measured of a clip and cannot write; leave engine out for the rule"
            )
        return self

    def identity(self) -> str:
        """What the detailed prompt depends on besides the request and the training captions."""
        if self.engine is None:
            return f"rule-v{RULE_VERSION}"
        return digest(self.engine.identity(), self.prompt.hash, str(self.examples), self.language)


@dataclass(frozen=True)
class Request:
    """What a user asked for. `duration_s` is 0 for an image."""

    prompt: str
    duration_s: float = 0.0

    @property
    def kind(self) -> str:
        return "video" if self.duration_s else "image"


def upsample(request: Request, captions: Sequence[str], settings: UpsampleSettings) -> str:
    """The detailed prompt. `captions` are of the training data, for their style; a few hundred do, and none is no error.

    Raises `EngineError` when the engine fails, or what it writes is unfit each time.
    """
    if settings.engine is None:
        return by_rule(request.prompt, captions)
    prompt = settings.prompt
    values = {
        "language": LANGUAGES[settings.language][0],
        "kind": request.kind,
        "duration": f"{request.duration_s:.3g} seconds" if request.duration_s else None,
        "request": request.prompt,
        "examples": nearest(request.prompt, captions, settings.examples),
    }
    system, text = prompt.render(values)
    engine = settings.engine.open()
    faults = []
    try:
        for attempt in range(settings.retries + 1):
            key = digest(settings.engine.identity(), system, text, str(attempt))
            temperature = RETRY_TEMPERATURE if attempt else 0.0
            question = Question(
                key,
                key,
                text,
                system,
                max_tokens=prompt.max_tokens,
                temperature=temperature,
                seed=attempt,
                json_schema=prompt.answer_schema,
            )
            (answer,) = engine.answer([question])
            if answer.error is not None:
                raise EngineError(f"'{request.prompt}' could not be upsampled: {answer.error}")
            try:
                (detailed, *_) = parse(prompt, answer.text, answer.truncated).captions.values()
            except UnfitAnswerError as error:
                faults.append(str(error))
                continue
            fault = quality.fault(detailed, prompt.own_words, settings.language)
            if fault is None:
                return detailed
            faults.append(fault)
    finally:
        engine.close()
    raise EngineError(
        f"'{request.prompt}' could not be upsampled: {'; asked again: '.join(faults)}. Leave upsample out, or its engine for the rule"
    )


@dataclass(frozen=True)
class Upsampler:
    """Settings with the training captions, read when the first prompt wants them."""

    settings: UpsampleSettings
    captions: Callable[[], Sequence[str]]

    @property
    def identity(self) -> str:
        return self.settings.identity()

    def detailed(self, prompt: str, seconds: float) -> str:
        return upsample(Request(prompt, seconds), self.captions(), self.settings)


def by_rule(prompt: str, captions: Sequence[str]) -> str:
    """The prompt as a sentence, and the sentences that recur in training captions and are most often said of what is most like it.

    Captions by rule end in such sentences ("A bright landscape video with slow motion."), and a model that was trained on them knows no
    others. Of captions that never repeat each other it takes nothing.
    """
    prompt = " ".join(prompt.split())
    prompt += "" if prompt[-1:] in ".!?" else "."
    manners = Counter(sentence for caption in captions for sentence in set(_sentences(caption)))
    least = max(2, math.ceil(RECURS * len(captions)))
    recurring = {sentence for sentence, count in manners.items() if count >= least and sentence not in prompt}
    for caption in nearest(prompt, captions, len(captions)):
        if said := [sentence for sentence in _sentences(caption)[1:] if sentence in recurring]:
            return " ".join([prompt, *said])
    return prompt


def nearest(prompt: str, captions: Sequence[str], count: int) -> list[str]:
    """The captions most like a prompt, best first: by cosine of their words weighted by rarity (tf-idf; Salton and Buckley 1988), then as text."""
    distinct = sorted(set(captions))
    words = [set(quality.words_of(caption)) for caption in distinct]
    df = Counter(word for each in words for word in each)
    weight = {word: math.log((1 + len(distinct)) / (1 + n)) ** 2 for word, n in df.items()}
    wanted = set(quality.words_of(prompt))

    def likeness(number: int) -> float:
        shared = math.fsum(sorted(weight[word] for word in words[number] & wanted))
        length = math.fsum(sorted(weight[word] for word in words[number]))
        return shared / math.sqrt(length) if length else 0.0

    order = sorted(range(len(distinct)), key=lambda number: (-likeness(number), distinct[number]))
    return [distinct[number] for number in order[:count]]


def _sentences(caption: str) -> list[str]:
    return [sentence.strip() for sentence in SENTENCE.findall(caption)]
