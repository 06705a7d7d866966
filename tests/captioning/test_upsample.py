"""Prompt upsampling: by the rule, and by an engine with scripted answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError, Question
from captioning.upsample import UpsampleRequest, UpsampleSettings, nearest_captions, upsample, upsample_by_rule
from cluster.config import ConfigError, parse, parse_document

SLOW, DARK = "A bright landscape video with slow motion.", "A dark portrait video with motion."
CAPTIONS = [
    *(f"A heron wades through pool {name}. {SLOW}" for name in "abc"),
    *(f"A train crosses bridge {name} at night. {DARK}" for name in "abc"),
    "A rare bird nobody saw before. It sings once.",
]

GOOD = (
    "A red circle drifts slowly from left to right over a pale ground while the camera stands still and soft light "
    "falls from above."
)


class Scripted(CaptionerSettings):
    """An engine whose answers a function gives."""

    name: str = "scripted"
    answer: Callable[[Question], Answer]

    def identity(self) -> str:
        return "scripted"

    def open(self) -> Captioner:
        return ScriptedCaptioner(self.answer)


class ScriptedCaptioner(Captioner):
    def __init__(self, answer: Callable[[Question], Answer]) -> None:
        self._answer = answer

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        yield from map(self._answer, questions)


def scripted(*texts: str) -> tuple[UpsampleSettings, list[Question]]:
    """Return settings whose engine answers with these texts in order, and the list of the questions it gets."""
    asked: list[Question] = []

    def answer(question: Question) -> Answer:
        asked.append(question)
        return Answer(question.key, question.uid, texts[len(asked) - 1])

    return UpsampleSettings(engine=Scripted(answer=answer)), asked


def test_rule_appends_recurring_sentences_of_similar_captions() -> None:
    assert upsample_by_rule("a heron in the fog", CAPTIONS) == f"a heron in the fog. {SLOW}"
    assert upsample_by_rule("the night train!", CAPTIONS) == f"the night train! {DARK}"


def test_rule_appends_nothing_that_does_not_recur() -> None:
    assert upsample_by_rule("a bird", [f"Bird {i} sits. It looks at tree {i}." for i in range(50)]) == "a bird."
    assert upsample_by_rule("a  bird\nsings", []) == "a bird sings."


@pytest.mark.slow
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), st.lists(st.sampled_from(CAPTIONS), max_size=9))
def test_rule_keeps_the_prompt_whatever_the_caption_order(prompt: str, captions: list[str]) -> None:
    detailed = upsample_by_rule(prompt, captions)
    assert detailed.startswith(" ".join(prompt.split()))
    assert detailed == upsample_by_rule(prompt, captions[::-1])


def test_nearest_captions_weighs_rare_words() -> None:
    assert nearest_captions("the heron at night by a pool", CAPTIONS, 1)[0].startswith("A heron")
    assert nearest_captions("anything", CAPTIONS, 99) == nearest_captions("anything", CAPTIONS[::-1], 99)
    assert len(nearest_captions("x", [*CAPTIONS, *CAPTIONS], 99)) == len(CAPTIONS)


def test_engine_gets_similar_captions_and_no_images() -> None:
    settings, asked = scripted(GOOD)
    assert upsample(UpsampleRequest("a heron", 4.0), CAPTIONS, settings) == GOOD
    (question,) = asked
    assert not question.images
    assert question.text.count("- A heron wades") == 3
    assert "takes 4 seconds" in question.system
    assert question.temperature == 0


def test_prompt_for_an_image_has_no_motion() -> None:
    settings, asked = scripted(GOOD)
    upsample(UpsampleRequest("a heron"), [], settings)
    assert "movement" not in asked[0].system
    assert "seconds" not in asked[0].system
    assert "Captions of the training data" not in asked[0].text


def test_unfit_answer_is_asked_again_and_then_reported() -> None:
    settings, asked = scripted("I'm sorry, I cannot help with that.", GOOD)
    assert upsample(UpsampleRequest("a heron"), [], settings) == GOOD
    assert [(question.seed, question.temperature > 0) for question in asked] == [(0, False), (1, True)]
    settings, asked = scripted("", "I'm sorry, I cannot help with that.")
    with pytest.raises(
        EngineError, match=r"'a heron' could not be upsampled: empty caption; asked again: refused caption"
    ):
        upsample(UpsampleRequest("a heron"), [], settings)


def test_error_of_the_engine_is_reported() -> None:
    settings = UpsampleSettings(
        engine=Scripted(answer=lambda question: Answer(question.key, question.uid, error="TimeoutError: 30 s"))
    )
    with pytest.raises(EngineError, match="TimeoutError: 30 s"):
        upsample(UpsampleRequest("a heron"), [], settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("engine: {name: signals}", "cannot write"),
        ("language: xx", "unknown language 'xx'"),
        ("prompt: nowhere", "nowhere"),
        ("prompt: dense", "variable"),
    ],
)
def test_invalid_settings_are_refused(data: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(UpsampleSettings, parse_document(data, "upsample.yaml"))


def test_identity_covers_engine_and_examples() -> None:
    engine: Any = Scripted(answer=lambda question: Answer(question.key, question.uid))
    variants = [UpsampleSettings(), UpsampleSettings(engine=engine), UpsampleSettings(engine=engine, examples=2)]
    assert len({settings.identity() for settings in variants}) == 3
