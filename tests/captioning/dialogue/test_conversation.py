"""Conversations as a pure function: from a clip, settings and answers to pending questions, captions or a failure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.dialogue.conversation import (
    Captioned,
    Clip,
    ConversationSettings,
    Failed,
    Pending,
    PendingQuestion,
    advance,
    describe_span,
    split_windows,
    window_spans_s,
)
from captioning.engine import Answer, Question
from captioning.prompt import load_prompt

LEVELS, STRUCTURED = (load_prompt(name, "describe") for name in ("levels", "structured"))
SETTINGS = ConversationSettings("engine-v1", LEVELS, load_prompt("merge", "merge"), window_size=4, min_window=2)
WITH_REWRITER = replace(SETTINGS, rewriter="writer-v1", rewrite=load_prompt("rewrite", "rewrite"))
COLUMNS: dict[str, Any] = {"kind": "video", "duration_s": 8.0, "camera": "pan"}

Reply = Callable[[PendingQuestion, int], str | Answer]
"""Text of the answer, or the answer itself, to a question and to its index in the conversation."""


def clip(n_images: int = 4, uid: str = "u1", hint: str | None = None, **columns: Any) -> Clip:
    """Return a clip of 8 s with evenly spaced images."""
    images = tuple(f"jpeg {i} of {uid}".encode() for i in range(n_images))
    image_times_s = tuple(8.0 * (i + 0.5) / n_images for i in range(n_images))
    return Clip(uid, {**COLUMNS, **columns}, images, image_times_s, hint)


def levels(subject: str, **changes: str) -> str:
    """Return a fit answer to prompt `levels` with some captions changed."""
    captions = {
        "dense": f"A dense caption of {subject}.",
        "medium": f"A medium caption of {subject}.",
        "short": f"A caption of {subject}.",
    }
    return json.dumps({**captions, **changes})


def converse(
    clip: Clip, settings: ConversationSettings, reply: Reply, rejected: Mapping[str, str] | None = None
) -> tuple[Captioned | Failed, list[PendingQuestion]]:
    """Run a conversation to its end; return the end, and the questions in the order in which they were asked."""
    answers: dict[str, Answer] = {}
    history: list[PendingQuestion] = []
    while True:
        state = advance(clip, settings, answers, rejected or {})
        if not isinstance(state, Pending):
            return state, history
        assert state.questions
        for pending in state.questions:
            question = pending.question
            assert question.key not in answers, "the same question twice"
            text = reply(pending, len(history))
            history.append(pending)
            answers[question.key] = (
                text
                if isinstance(text, Answer)
                else Answer(question.key, question.uid, text, tokens_in=100, tokens_out=10, cost_usd=0.5)
            )


def question_keys(clip: Clip, settings: ConversationSettings) -> list[str]:
    """Return the keys of the first questions of a conversation."""
    state = advance(clip, settings, {}, {})
    assert isinstance(state, Pending)
    return [pending.question.key for pending in state.questions]


# Windows


@pytest.mark.parametrize(
    ("n_images", "expected"),
    [
        (1, [(0, 1)]),
        (256, [(0, 256)]),
        (257, [(0, 257)]),
        (383, [(0, 383)]),
        (384, [(0, 256), (256, 384)]),
        (512, [(0, 256), (256, 512)]),
        (639, [(0, 256), (256, 639)]),
        (640, [(0, 256), (256, 512), (512, 640)]),
    ],
)
def test_windows_of_256_images_with_at_least_128(n_images: int, expected: list[tuple[int, int]]) -> None:
    assert split_windows(n_images, 256, 128) == expected


@pytest.mark.slow
@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_image_once(n_images: int, size: int, min_size: int) -> None:
    min_size = min(min_size, size)
    windows = split_windows(n_images, size, min_size)
    assert [i for start, end in windows for i in range(start, end)] == list(range(n_images))
    assert all(end - start == size for start, end in windows[:-1])
    if len(windows) > 1:
        assert min_size <= windows[-1][1] - windows[-1][0] < size + min_size


@pytest.mark.slow
@given(st.lists(st.floats(0, 100), min_size=1, max_size=50, unique=True), st.integers(1, 10))
def test_spans_cover_the_clip_and_contain_their_images(times: list[float], size: int) -> None:
    image_times_s, duration_s = sorted(times), 101.0
    windows = split_windows(len(image_times_s), size, 1)
    spans = window_spans_s(image_times_s, duration_s, windows)
    assert (spans[0][0], spans[-1][1]) == (0.0, duration_s)
    assert all(span[1] == following[0] for span, following in pairwise(spans))
    for (start, end), (start_s, end_s) in zip(windows, spans, strict=True):
        assert all(start_s <= time_s <= end_s for time_s in image_times_s[start:end])


def test_span_in_words() -> None:
    assert describe_span((0.0, 12.5), 40.0) == "from 0 to 12.5 seconds of a video of 40 seconds"


# Stages


def test_clip_of_one_window_is_one_question() -> None:
    end, history = converse(clip(hint="Gerda on a boat"), SETTINGS, lambda pending, n: levels("a boat"))
    (pending,) = history
    question = pending.question
    assert (pending.role, question.uid, len(question.images)) == ("captioner", "u1", 4)
    assert question.image_times_s == (1.0, 3.0, 5.0, 7.0)
    assert (question.temperature, question.seed, question.max_tokens) == (0.0, 0, LEVELS.max_tokens)
    assert question.json_schema == LEVELS.answer_schema
    assert all(words in question.text for words in ("Gerda on a boat", "8 seconds", "the camera pans", "4 frames"))
    assert isinstance(end, Captioned)
    assert end.main_caption == "A dense caption of a boat."
    assert list(end.captions) == ["dense", "medium", "short", "source"]
    assert end.captions["source"] == "Gerda on a boat"
    assert (end.usage.answers, end.usage.tokens_in, end.usage.tokens_out, end.usage.cost_usd) == (1, 100, 10, 0.5)


def test_windows_are_described_and_then_merged_by_kind() -> None:
    def reply(pending: PendingQuestion, n: int) -> str:
        return levels(f"part {n}") if n < 3 else levels("the whole")

    end, history = converse(clip(11), SETTINGS, reply)
    assert [len(pending.question.images) for pending in history] == [4, 4, 3, 0]
    for pending, span in zip(history, ("from 0 to 2.909", "from 2.909 to 5.818", "from 5.818 to 8"), strict=False):
        assert f"{span} seconds of a video of 8 seconds" in pending.question.text
        assert 0 <= pending.question.image_times_s[0] < 8 / 11
    merge = history[-1].question
    assert (merge.images, merge.json_schema) == ((), LEVELS.answer_schema)
    for level in ("dense: A dense", "medium: A medium", "short: A"):
        assert [f"{level} caption of part {i}." in merge.text for i in range(3)] == [True] * 3
    assert isinstance(end, Captioned)
    assert end.main_caption == "A dense caption of the whole."
    assert end.usage.answers == 4


def test_short_remainder_joins_the_window_before() -> None:
    _, history = converse(clip(9), SETTINGS, lambda pending, n: levels(f"part {n}"))
    assert [len(pending.question.images) for pending in history] == [4, 5, 0]


def test_fields_of_windows_are_merged() -> None:
    def reply(pending: PendingQuestion, n: int) -> str:
        fields = {name: f"the {name} of {n}" for name in STRUCTURED.fields}
        return json.dumps(fields | {"dense": f"A caption of part {n}."})

    end, history = converse(clip(8), replace(SETTINGS, describe=STRUCTURED), reply)
    assert "lighting: the lighting of 1" in history[-1].question.text
    assert isinstance(end, Captioned)
    assert end.fields == {name: f"the {name} of 2" for name in STRUCTURED.fields}


def test_rewriter_gets_text_only_and_writes_the_main_caption() -> None:
    def reply(pending: PendingQuestion, n: int) -> str:
        return "A boat in few words." if pending.role == "rewriter" else levels("a boat")

    end, history = converse(clip(), WITH_REWRITER, reply)
    assert [pending.role for pending in history] == ["captioner", "rewriter"]
    question = history[1].question
    assert (question.images, question.json_schema) == ((), None)
    assert "A dense caption of a boat." in question.text
    assert isinstance(end, Captioned)
    assert end.main_caption == "A boat in few words."
    assert list(end.captions) == ["rewritten", "dense", "medium", "short"]
    assert WITH_REWRITER.rewrite is not None
    assert WITH_REWRITER.prompt_label == f"{LEVELS.label} > {WITH_REWRITER.rewrite.label}"


def test_captioner_without_prompt_gets_columns() -> None:
    settings = ConversationSettings("signals-v2", columns=("kind", "luma"), kind="measured")
    boat = Clip("u1", {**COLUMNS, "luma": 0.4}, source_caption="a boat")
    end, history = converse(boat, settings, lambda pending, n: "a boat. A video.")
    question = history[0].question
    assert (question.text, question.columns, question.source_caption) == ("", {"kind": "video", "luma": 0.4}, "a boat")
    assert isinstance(end, Captioned)
    assert dict(end.captions) == {"measured": "a boat. A video.", "source": "a boat"}
    assert settings.prompt_label is None


# Unfit answers


def test_unfit_answer_is_asked_again_with_another_seed() -> None:
    def reply(pending: PendingQuestion, n: int) -> str:
        return levels("a boat", short="I'm sorry, I can't.") if n == 0 else levels("a boat")

    end, history = converse(clip(), SETTINGS, reply)
    first, second = (pending.question for pending in history)
    assert (second.temperature, second.seed) == (0.7, 1)
    assert first.key != second.key
    assert replace(second, key=first.key, temperature=0.0, seed=0) == first
    assert isinstance(end, Captioned)
    assert (end.usage.answers, end.usage.cost_usd, end.key) == (2, 1.0, second.key)


def test_failure_has_the_faults_of_all_attempts() -> None:
    replies = ["{", levels("a boat", dense="")]
    end, history = converse(clip(), SETTINGS, lambda pending, n: replies[n])
    assert isinstance(end, Failed)
    assert end.reason == "truncated answer: its JSON breaks off after '{'; asked again: empty caption"
    assert (len(history), end.usage.answers, end.usage.tokens_out) == (2, 2, 20)
    end, history = converse(clip(), replace(SETTINGS, retries=0), lambda pending, n: "{")
    assert isinstance(end, Failed)
    assert (len(history), end.reason) == (1, "truncated answer: its JSON breaks off after '{'")


def test_failed_window_is_named_and_alone_asked_again() -> None:
    def reply(pending: PendingQuestion, n: int) -> str:
        return "" if "from 4 to 8 seconds" in pending.question.text else levels("a part")

    end, history = converse(clip(8), SETTINGS, reply)
    assert isinstance(end, Failed)
    assert end.reason == "malformed answer: it is empty; asked again: malformed answer: it is empty (window 1)"
    assert ["from 0 to 4" in pending.question.text for pending in history] == [True, False, False]


def test_error_of_the_engine_is_not_asked_again() -> None:
    def reply(pending: PendingQuestion, n: int) -> Answer:
        return Answer(pending.question.key, "u1", error="BadRequest: too many images", cost_usd=0.25)

    end, history = converse(clip(), SETTINGS, reply)
    assert isinstance(end, Failed)
    assert (end.reason, end.usage.cost_usd) == ("unanswered question: BadRequest: too many images", 0.25)
    assert len(history) == 1


@pytest.mark.parametrize(("second", "may_pass"), [("part", True), ("", False)])
def test_error_that_may_pass_leaves_the_clip_open(second: str, may_pass: bool) -> None:
    """A clip with an unfit answer to another window is failed whatever the server does."""

    def reply(pending: PendingQuestion, n: int) -> str | Answer:
        if "from 4 to 8 seconds" in pending.question.text:
            return levels(second) if second else ""
        return Answer(pending.question.key, "u1", error="HTTP 503", may_pass=True)

    end, _ = converse(clip(8), replace(SETTINGS, retries=0), reply)
    assert isinstance(end, Failed)
    assert end.may_pass == may_pass
    assert end.reason.startswith("unanswered question: HTTP 503" if may_pass else "malformed answer")


def test_truncated_answer_is_unfit_even_if_complete() -> None:
    def reply(pending: PendingQuestion, n: int) -> str | Answer:
        return Answer(pending.question.key, "u1", levels("a boat"), truncated=True) if n == 0 else levels("a boat")

    end, history = converse(clip(), SETTINGS, reply)
    assert isinstance(end, Captioned)
    assert len(history) == 2


def test_rejected_answer_is_asked_again() -> None:
    fault = "duplicated caption: it is"
    _, history = converse(clip(), SETTINGS, lambda pending, n: levels("a boat"))
    key = history[0].question.key
    end, again = converse(clip(), SETTINGS, lambda pending, n: levels(f"boat {n}"), {key: fault})
    assert isinstance(end, Captioned)
    assert end.main_caption == "A dense caption of boat 1."
    all_rejected = dict.fromkeys([pending.question.key for pending in again], fault)
    end, _ = converse(clip(), SETTINGS, lambda pending, n: levels("a boat"), all_rejected)
    assert isinstance(end, Failed)
    assert end.reason == f"{fault}; asked again: {fault}"


# Keys

KEY_CHANGES: list[Callable[[Clip, ConversationSettings], tuple[Clip, ConversationSettings]]] = [
    lambda clip, settings: (replace(clip, uid="u2"), settings),
    lambda clip, settings: (replace(clip, images=(*clip.images[:-1], b"another")), settings),
    lambda clip, settings: (replace(clip, images=clip.images[::-1]), settings),
    lambda clip, settings: (replace(clip, image_times_s=(*clip.image_times_s[:-1], 7.5)), settings),
    lambda clip, settings: (replace(clip, columns={**COLUMNS, "camera": "zoom"}), settings),
    lambda clip, settings: (replace(clip, source_caption="a boat"), settings),
    lambda clip, settings: (clip, replace(settings, captioner="engine-v2")),
    lambda clip, settings: (clip, replace(settings, language="de")),
    lambda clip, settings: (clip, replace(settings, describe=STRUCTURED)),
]


@pytest.mark.parametrize("change", KEY_CHANGES)
def test_key_covers_all_that_the_answer_depends_on(
    change: Callable[[Clip, ConversationSettings], tuple[Clip, ConversationSettings]],
) -> None:
    assert question_keys(clip(), SETTINGS) != question_keys(*change(clip(), SETTINGS))


def test_key_covers_nothing_else() -> None:
    settings = replace(SETTINGS, retries=5, window_size=256, min_window=9)
    assert question_keys(clip(), SETTINGS) == question_keys(clip(luma=0.3), settings)


# Any answers

REPLIES = [
    "",
    "{",
    "I'm sorry.",
    levels("a boat"),
    levels("a ship"),
    levels("a boat", dense="string"),
    "A boat in few words.",
    "error",
]


@pytest.mark.slow
@given(
    st.integers(1, 14), st.lists(st.sampled_from(REPLIES), min_size=1, max_size=12), st.booleans(), st.integers(0, 3)
)
def test_any_answers_end_it_in_any_order(n_images: int, replies: list[str], rewrites: bool, retries: int) -> None:
    settings = replace(WITH_REWRITER if rewrites else SETTINGS, retries=retries)

    def answer(question: Question) -> Answer:
        text = replies[int(question.key, 16) % len(replies)]
        error = "broke" if text == "error" else None
        return Answer(question.key, question.uid, text, error=error, tokens_in=1, cost_usd=0.5)

    def end(one_by_one: bool) -> Captioned | Failed:
        answers: dict[str, Answer] = {}
        while isinstance(state := advance(clip(n_images), settings, answers, {}), Pending):
            asked = state.questions[-1:] if one_by_one else state.questions
            answers |= {pending.question.key: answer(pending.question) for pending in asked}
            assert len(answers) <= (retries + 1) * (n_images + 2)
        return state

    together = end(one_by_one=False)
    separately = end(one_by_one=True)
    assert type(together) is type(separately)
    if isinstance(together, Captioned):
        assert together == separately
