from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.engine import Answer, Captioner, CaptionerSettings, EngineError, Question
from captioning.upsample import Request, UpsampleSettings, by_rule, nearest, upsample
from cluster.config import ConfigError, parse, parse_document

SLOW, DARK = "A bright landscape video with slow motion.", "A dark portrait video with motion."
CAPTIONS = [
    *(f"A heron wades through pool {name}. {SLOW}" for name in "abc"),
    *(f"A train crosses bridge {name} at night. {DARK}" for name in "abc"),
    "A rare bird nobody saw before. It sings once.",
]

GOOD = "A red circle drifts slowly from left to right over a pale ground while the camera stands still and soft light falls from above."


class Scripted(CaptionerSettings):
    """Says what it is told to, and remembers what it was asked."""

    name: str = "scripted"
    say: Callable[[Question], Answer]

    def identity(self) -> str:
        return "scripted"

    def open(self) -> Captioner:
        return _Engine(self.say)


class _Engine(Captioner):
    def __init__(self, say: Callable[[Question], Answer]) -> None:
        self._say = say

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        yield from map(self._say, questions)


def scripted(*texts: str) -> tuple[UpsampleSettings, list[Question]]:
    asked: list[Question] = []

    def say(question: Question) -> Answer:
        asked.append(question)
        return Answer(question.key, question.uid, texts[len(asked) - 1])

    return UpsampleSettings(engine=Scripted(say=say)), asked


def test_the_rule_says_what_training_captions_say_of_what_is_most_like_the_prompt() -> None:
    assert by_rule("a heron in the fog", CAPTIONS) == f"a heron in the fog. {SLOW}"
    assert by_rule("the night train!", CAPTIONS) == f"the night train! {DARK}"


def test_the_rule_takes_nothing_from_captions_that_do_not_recur() -> None:
    assert by_rule("a bird", [f"Bird {i} sits. It looks at tree {i}." for i in range(50)]) == "a bird."
    assert by_rule("a  bird\nsings", []) == "a bird sings."


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), st.lists(st.sampled_from(CAPTIONS), max_size=9))
def test_the_rule_keeps_the_prompt_and_does_not_depend_on_the_order(prompt: str, captions: list[str]) -> None:
    detailed = by_rule(prompt, captions)
    assert detailed.startswith(" ".join(prompt.split()))
    assert detailed == by_rule(prompt, captions[::-1])


def test_nearest_weighs_rare_words() -> None:
    assert nearest("the heron at night by a pool", CAPTIONS, 1)[0].startswith("A heron")
    assert nearest("anything", CAPTIONS, 99) == nearest("anything", CAPTIONS[::-1], 99)
    assert len(nearest("x", [*CAPTIONS, *CAPTIONS], 99)) == len(CAPTIONS)


def test_an_engine_is_shown_captions_like_the_prompt_and_no_pictures() -> None:
    settings, asked = scripted(GOOD)
    assert upsample(Request("a heron", 4.0), CAPTIONS, settings) == GOOD
    (question,) = asked
    assert not question.images
    assert question.text.count("- A heron wades") == 3
    assert "takes 4 seconds" in question.system
    assert question.temperature == 0


def test_an_image_is_not_told_of_motion() -> None:
    settings, asked = scripted(GOOD)
    upsample(Request("a heron"), [], settings)
    assert "movement" not in asked[0].system
    assert "seconds" not in asked[0].system
    assert "Captions of the training data" not in asked[0].text


def test_an_unfit_answer_is_asked_for_again_with_another_seed_and_then_told() -> None:
    settings, asked = scripted("I'm sorry, I cannot help with that.", GOOD)
    assert upsample(Request("a heron"), [], settings) == GOOD
    assert [(question.seed, question.temperature > 0) for question in asked] == [(0, False), (1, True)]
    settings, asked = scripted("", "I'm sorry, I cannot help with that.")
    with pytest.raises(
        EngineError, match=r"'a heron' could not be upsampled: empty caption; asked again: refused caption"
    ):
        upsample(Request("a heron"), [], settings)


def test_an_engine_that_fails_says_why() -> None:
    settings = UpsampleSettings(
        engine=Scripted(say=lambda question: Answer(question.key, question.uid, error="TimeoutError: 30 s"))
    )
    with pytest.raises(EngineError, match="TimeoutError: 30 s"):
        upsample(Request("a heron"), [], settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("engine: {name: signals}", "cannot write"),
        ("language: xx", "unknown language 'xx'"),
        ("prompt: nowhere", "nowhere"),
        ("prompt: dense", "variable"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(data: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(UpsampleSettings, parse_document(data, "upsample.yaml"))


def test_identity_follows_engine_prompt_and_examples() -> None:
    engine: Any = Scripted(say=lambda question: Answer(question.key, question.uid))
    variants = [UpsampleSettings(), UpsampleSettings(engine=engine), UpsampleSettings(engine=engine, examples=2)]
    assert len({settings.identity() for settings in variants}) == 3
