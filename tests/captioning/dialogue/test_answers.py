"""Answers are parsed strictly: all requested captions and fields, or an error with the reason."""

from __future__ import annotations

import contextlib
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.cleaning import UnfitAnswerError
from captioning.dialogue.answers import ParsedAnswer, parse
from captioning.prompt import load_prompt

LEVELS, DENSE, STRUCTURED = (load_prompt(name, "describe") for name in ("levels", "dense", "structured"))
GOOD = {"dense": "A dog runs\n on a beach.", "medium": "A dog runs.", "short": "A dog."}


def test_captions_are_in_prompt_order_with_normal_space() -> None:
    shuffled = {name: GOOD[name] for name in ("short", "dense", "medium")}
    written = parse(LEVELS, json.dumps(shuffled))
    assert list(written.captions.items()) == [
        ("dense", "A dog runs on a beach."),
        ("medium", "A dog runs."),
        ("short", "A dog."),
    ]


@pytest.mark.parametrize(
    "wrap", ["{}", "  {}\n", "```json\n{}\n```", "```\n{}\n```", "<think>a b</think>\n```json\n{}\n```", "\ufeff{}"]
)
def test_fence_around_json_is_removed(wrap: str) -> None:
    assert parse(LEVELS, wrap.replace("{}", json.dumps(GOOD))).captions["short"] == "A dog."


def test_fields_and_captions_are_separated() -> None:
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
        ("<think>Let me see.</think>\nCaption: A dog runs.", "A dog runs."),
        ("```\nA dog runs.\n```", "A dog runs."),
        ("", ""),
    ],
)
def test_text_answer_loses_only_label_and_quotes(text: str, caption: str) -> None:
    assert parse(DENSE, text) == ParsedAnswer({"dense": caption})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps({**GOOD, "short": 5}), "malformed answer: 'short' is int"),
        (json.dumps({**GOOD, "short": None}), "malformed answer: 'short' is NoneType"),
        (json.dumps({"dense": "a", "short": "b"}), "malformed answer: it has no 'medium'"),
        (json.dumps({**GOOD, "note": "x"}), "malformed answer: it has a key 'note'"),
        (json.dumps([GOOD]), "malformed answer: JSON, but not an object"),
        ('"A dog"', "malformed answer: JSON, but not an object"),
        ('{"dense": "a", "dense": "b", "medium": "c", "short": "d"}', "malformed answer: it has a key twice"),
        ("A dog runs on a beach.", "malformed answer: not JSON"),
        ('{"dense": ' + "9" * 5000 + "}", "malformed answer: not JSON"),
        ("[" * 100_000, "malformed answer: not JSON"),
        ("Here you are: " + json.dumps(GOOD), "malformed answer: not JSON"),
        ("", "malformed answer: it is empty"),
        ('{"dense": "A dog runs', "truncated answer"),
        ('{"dense": "A dog runs", "medium"', "truncated answer"),
        ('{"dense": "A dog runs",', "truncated answer"),
        ('```json\n{"dense": "A dog runs', "truncated answer"),
        ("<think>The user wants", "truncated answer: its reasoning has no end"),
    ],
)
def test_unfit_answer_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(UnfitAnswerError) as caught:
        parse(LEVELS, text)
    assert str(caught.value).startswith(reason)


def test_truncated_answer_is_refused_even_if_complete() -> None:
    for prompt, text in ((DENSE, "A dog runs."), (LEVELS, json.dumps(GOOD))):
        with pytest.raises(UnfitAnswerError, match="truncated answer: it was cut off at"):
            parse(prompt, text, truncated=True)


@pytest.mark.slow
@given(st.integers(1, 200))
def test_json_cut_off_anywhere_is_truncated(at: int) -> None:
    text = json.dumps(GOOD)
    if at < len(text):
        with pytest.raises(UnfitAnswerError, match="truncated answer"):
            parse(LEVELS, text[:at])


@pytest.mark.slow
@given(st.fixed_dictionaries({name: st.text(max_size=30) for name in LEVELS.captions}))
def test_any_captions_come_back(values: dict[str, str]) -> None:
    shown = {
        name: "".join(c for c in text if unicodedata.category(c) != "Cc" or c.isspace())
        for name, text in values.items()
    }
    expected = {name: " ".join(text.replace("\ufeff", "").split()) for name, text in shown.items()}
    assert parse(LEVELS, json.dumps(values)).captions == expected


@pytest.mark.slow
@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(UnfitAnswerError):
        parse(LEVELS, text)
