"""Answers are read strictly: what was asked for, whole, or the reason why not."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.dialogue.answers import UnfitAnswerError, ParsedAnswer, parse
from captioning.prompt import load_prompt

LEVELS, DENSE, STRUCTURED = (load_prompt(name, "describe") for name in ("levels", "dense", "structured"))
GOOD = {"dense": "A dog runs\n on a beach.", "medium": "A dog runs.", "short": "A dog."}


def test_captions_come_in_the_prompts_order_with_white_space_folded() -> None:
    shuffled = {name: GOOD[name] for name in ("short", "dense", "medium")}
    written = parse(LEVELS, json.dumps(shuffled))
    assert list(written.captions.items()) == [
        ("dense", "A dog runs on a beach."),
        ("medium", "A dog runs."),
        ("short", "A dog."),
    ]


@pytest.mark.parametrize("wrap", ["{}", "  {}\n", "```json\n{}\n```", "```\n{}\n```"])
def test_a_block_around_json_is_no_matter(wrap: str) -> None:
    assert parse(LEVELS, wrap.replace("{}", json.dumps(GOOD))).captions["short"] == "A dog."


def test_fields_are_told_from_captions() -> None:
    values = {name: f"about {name}" for name in (*STRUCTURED.fields, *STRUCTURED.captions)}
    written = parse(STRUCTURED, json.dumps(values))
    assert (list(written.captions), list(written.fields)) == (
        ["dense"],
        ["subject", "action", "setting", "camera", "style", "lighting"],
    )


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("A dog runs.\n\nIt sleeps.", "A dog runs. It sleeps."),
        ('"A dog runs."', "A dog runs."),
        ("Caption: A dog runs.", "A dog runs."),
        ('"Stop" says a sign, and "Go" another: "Go"', '"Stop" says a sign, and "Go" another: "Go"'),
        ("", ""),
    ],
)
def test_a_text_is_taken_as_it_is_but_for_its_wrapping(text: str, caption: str) -> None:
    assert parse(DENSE, text) == ParsedAnswer({"dense": caption})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps({**GOOD, "short": 5}), "malformed answer: 'short' is int"),
        (json.dumps({**GOOD, "short": None}), "malformed answer: 'short' is NoneType"),
        (json.dumps({"dense": "a", "short": "b"}), "malformed answer: it has no 'medium'"),
        (json.dumps({**GOOD, "note": "x"}), "malformed answer: it has a key 'note'"),
        (json.dumps([GOOD]), "malformed answer: JSON, but no object"),
        ('"A dog"', "malformed answer: JSON, but no object"),
        ('{"dense": "a", "dense": "b", "medium": "c", "short": "d"}', "malformed answer: a key is given twice"),
        ("A dog runs on a beach.", "malformed answer: no JSON"),
        ("Here you are: " + json.dumps(GOOD), "malformed answer: no JSON"),
        ("", "malformed answer: it is empty"),
        ('{"dense": "A dog runs', "truncated answer"),
        ('{"dense": "A dog runs", "medium"', "truncated answer"),
        ('{"dense": "A dog runs",', "truncated answer"),
        ('```json\n{"dense": "A dog runs', "truncated answer"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(UnfitAnswerError) as caught:
        parse(LEVELS, text)
    assert str(caught.value).startswith(reason)


def test_an_answer_that_was_cut_off_is_refused_however_whole_it_looks() -> None:
    for prompt, text in ((DENSE, "A dog runs."), (LEVELS, json.dumps(GOOD))):
        with pytest.raises(UnfitAnswerError, match="truncated answer: it was cut off at"):
            parse(prompt, text, truncated=True)


@given(st.integers(1, 200))
def test_json_cut_off_anywhere_is_truncated(at: int) -> None:
    text = json.dumps(GOOD)
    if at < len(text):
        with pytest.raises(UnfitAnswerError, match="truncated answer"):
            parse(LEVELS, text[:at])


@given(st.fixed_dictionaries({name: st.text(max_size=30) for name in LEVELS.captions}))
def test_any_texts_come_back(values: dict[str, str]) -> None:
    assert parse(LEVELS, json.dumps(values)).captions == {name: " ".join(text.split()) for name, text in values.items()}


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UnfitAnswerError):
        parse(LEVELS, text)
