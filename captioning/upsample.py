"""Prompt upsampling: expand a short prompt to the style of the training captions, as the Sora report does with GPT.

An engine that answers prompts writes the detailed prompt. Without an engine, a rule appends sentences that recur in
training captions.
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
from captioning.cleaning import UnfitAnswerError
from captioning.dialogue.answers import parse
from captioning.dialogue.conversation import RETRY_TEMPERATURE
from captioning.engine import FOLDER, CaptionerSettings, EngineError, Question
from captioning.language import LANGUAGES, check_code
from captioning.prompt import Prompt, PromptField, load_prompt
from cluster.config import Settings
from cluster.plugins import PluginField
from cluster.storage import digest

RULE_VERSION = 1

SENTENCE = re.compile(r"[^.!?]+[.!?]+")
MIN_RECURRING_SHARE = 0.02
"""Smallest share of the training captions with a sentence that describes the style of the footage, not one clip. Such a
sentence also occurs in at least two captions."""


class UpsampleSettings(Settings):
    """Settings of section `upsample` of a recipe, for samples that set `upsample: true`."""

    engine: Annotated[CaptionerSettings, PluginField(FOLDER, CaptionerSettings)] | None = Field(
        None,
        description="Engine that writes the detailed prompt from text alone; null appends recurring caption sentences.",
    )
    prompt: Annotated[Prompt, PromptField("upsample")] = Field(
        default_factory=lambda: load_prompt("upsample", "upsample"),
        description="Prompt for the engine: name of a packaged prompt or path of a .yaml file.",
    )
    examples: int = Field(
        4, ge=0, le=64, description="Number of training captions shown to the engine: those most similar to the prompt."
    )
    language: str = Field("en", description="Language of the detailed prompt, as ISO 639-1 code.")
    retries: int = Field(1, ge=0, le=8, description="How often an unfit answer is requested again, with another seed.")

    _known_language = field_validator("language")(check_code)

    @model_validator(mode="after")
    def _engine_answers_prompts(self) -> UpsampleSettings:
        if self.engine is not None and not self.engine.answers_prompts:
            raise ValueError(
                f"engine {self.engine.name} only states measured columns and cannot write; leave out engine"
            )
        return self

    def identity(self) -> str:
        """Return everything that a detailed prompt depends on besides the request and the training captions."""
        if self.engine is None:
            return f"rule-v{RULE_VERSION}"
        return digest(self.engine.identity(), self.prompt.hash, str(self.examples), self.language)


@dataclass(frozen=True)
class UpsampleRequest:
    """A short prompt and the duration of the sample, which is 0 for an image."""

    prompt: str
    duration_s: float = 0.0

    @property
    def kind(self) -> str:
        """Kind of the sample: video or image."""
        return "video" if self.duration_s else "image"


@dataclass(frozen=True)
class Upsampler:
    """Upsampling settings with the training captions, which are loaded for the first prompt."""

    settings: UpsampleSettings
    captions: Callable[[], Sequence[str]]

    @property
    def identity(self) -> str:
        """Identity of the settings."""
        return self.settings.identity()

    def upsample(self, prompt: str, seconds: float) -> str:
        """Return the detailed prompt for a video of this duration, or for an image if it is 0."""
        return upsample(UpsampleRequest(prompt, seconds), self.captions(), self.settings)


def upsample(request: UpsampleRequest, captions: Sequence[str], settings: UpsampleSettings) -> str:
    """Return the detailed prompt of a request.

    `captions` of the training data set its style; a few hundred suffice, and they may be empty. Raises `EngineError` if
    the engine fails or if all its answers are unfit.
    """
    if settings.engine is None:
        return upsample_by_rule(request.prompt, captions)
    prompt = settings.prompt
    values = {
        "language": LANGUAGES[settings.language][0],
        "kind": request.kind,
        "duration": f"{request.duration_s:.3g} seconds" if request.duration_s else None,
        "request": request.prompt,
        "examples": nearest_captions(request.prompt, captions, settings.examples),
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
            fault = quality.fault(detailed, prompt.static_text, settings.language)
            if fault is None:
                return detailed
            faults.append(fault)
    finally:
        engine.close()
    raise EngineError(
        f"'{request.prompt}' could not be upsampled: {quality.RETRY_SEPARATOR.join(faults)}. "
        "Leave out upsample, or its engine to use the rule"
    )


def upsample_by_rule(prompt: str, captions: Sequence[str]) -> str:
    """Return the prompt followed by the recurring sentences of the most similar training caption that has any.

    Captions of engine `signals` end in recurring sentences ("A bright landscape video with slow motion."), and a model
    trained on them expects such an end. Captions without recurring sentences add nothing.
    """
    prompt = " ".join(prompt.split())
    prompt += "" if prompt[-1:] in ".!?" else "."
    counts = Counter(sentence for caption in captions for sentence in set(_sentences(caption)))
    min_count = max(2, math.ceil(MIN_RECURRING_SHARE * len(captions)))
    recurring = {sentence for sentence, count in counts.items() if count >= min_count and sentence not in prompt}
    for caption in nearest_captions(prompt, captions, len(captions)):
        if appended := [sentence for sentence in _sentences(caption)[1:] if sentence in recurring]:
            return " ".join([prompt, *appended])
    return prompt


def nearest_captions(prompt: str, captions: Sequence[str], count: int) -> list[str]:
    """Return the captions most similar to a prompt, the most similar first; equal ones in alphabetical order.

    The similarity is the cosine of the words weighted by rarity (tf-idf; Salton and Buckley 1988).
    """
    distinct = sorted(set(captions))
    words = [set(quality.words_of(caption)) for caption in distinct]
    document_counts = Counter(word for each in words for word in each)
    weights = {word: math.log((1 + len(distinct)) / (1 + n)) ** 2 for word, n in document_counts.items()}
    prompt_words = set(quality.words_of(prompt))

    def similarity(index: int) -> float:
        shared = math.fsum(sorted(weights[word] for word in words[index] & prompt_words))
        norm = math.fsum(sorted(weights[word] for word in words[index]))
        return shared / math.sqrt(norm) if norm else 0.0

    order = sorted(range(len(distinct)), key=lambda index: (-similarity(index), distinct[index]))
    return [distinct[index] for index in order[:count]]


def _sentences(caption: str) -> list[str]:
    return [sentence.strip() for sentence in SENTENCE.findall(caption)]
