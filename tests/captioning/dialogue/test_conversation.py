"""Conversations as a pure function: from a clip, a script and the answers so far to what is asked next, or how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.dialogue.conversation import PendingQuestion, Clip, Captioned, Failed, Pending, ConversationSettings, advance
from captioning.engine import Answer, Question
from captioning.prompt import load_prompt

LEVELS, STRUCTURED = (load_prompt(name, "describe") for name in ("levels", "structured"))
SCRIPT = ConversationSettings("engine-v1", LEVELS, load_prompt("merge", "merge"), window_size=4, min_window=2)
REWRITTEN = replace(SCRIPT, rewriter="writer-v1", rewrite=load_prompt("rewrite", "rewrite"))
COLUMNS: dict[str, Any] = {"kind": "video", "duration_s": 8.0, "camera": "pan"}


def clip(n_pictures: int = 4, uid: str = "u1", hint: str | None = None, **columns: Any) -> Clip:
    images = tuple(f"jpeg {i} of {uid}".encode() for i in range(n_pictures))
    image_times_s = tuple(8.0 * (i + 0.5) / n_pictures for i in range(n_pictures))
    return Clip(uid, {**COLUMNS, **columns}, images, image_times_s, hint)


def levels(of: str, **other: str) -> str:
    return json.dumps(
        {
            "dense": f"A dense caption of {of}.",
            "medium": f"A medium caption of {of}.",
            "short": f"A caption of {of}.",
            **other,
        }
    )


Reply = Callable[[PendingQuestion, int], str | Answer]


def talk(
    clip: Clip, script: ConversationSettings, reply: Reply, rejected: Mapping[str, str] | None = None
) -> tuple[Captioned | Failed, list[PendingQuestion]]:
    """A conversation to its end, with every question in the order it was asked."""
    answers: dict[str, Answer] = {}
    history: list[PendingQuestion] = []
    while True:
        state = advance(clip, script, answers, rejected or {})
        if not isinstance(state, Pending):
            return state, history
        assert state.asked
        for asked in state.asked:
            question = asked.question
            assert question.key not in answers, "the same question twice"
            said = reply(asked, len(history))
            history.append(asked)
            answers[question.key] = (
                said
                if isinstance(said, Answer)
                else Answer(question.key, question.uid, said, tokens_in=100, tokens_out=10, cost_usd=0.5)
            )


def test_one_window_is_one_question_with_all_that_is_known() -> None:
    end, history = talk(clip(hint="Gerda on a boat"), SCRIPT, lambda asked, n: levels("a boat"))
    (asked,) = history
    question = asked.question
    assert (asked.role, question.uid, len(question.images), question.image_times_s) == (
        "captioner",
        "u1",
        4,
        (1.0, 3.0, 5.0, 7.0),
    )
    assert (question.temperature, question.seed, question.max_tokens) == (0.0, 0, LEVELS.max_tokens)
    assert question.json_schema == LEVELS.answer_schema
    assert all(words in question.text for words in ("Gerda on a boat", "8 seconds", "the camera pans", "4 frames"))
    assert isinstance(end, Captioned)
    assert end.main_caption == "A dense caption of a boat."
    assert list(end.captions) == ["dense", "medium", "short", "source"]
    assert end.captions["source"] == "Gerda on a boat"
    assert (end.usage.answers, end.usage.tokens_in, end.usage.tokens_out, end.usage.cost_usd) == (1, 100, 10, 0.5)


def test_windows_are_asked_alone_and_then_merged_level_by_level() -> None:
    def reply(asked: PendingQuestion, n: int) -> str:
        return levels(f"part {n}") if n < 3 else levels("the whole")

    end, history = talk(clip(11), SCRIPT, reply)
    assert [len(asked.question.images) for asked in history] == [4, 4, 3, 0]
    for asked, span in zip(history, ("from 0 to 2.909", "from 2.909 to 5.818", "from 5.818 to 8"), strict=False):
        assert f"{span} seconds of a video of 8 seconds" in asked.question.text
        assert 0 <= asked.question.image_times_s[0] < 8 / 11
    merging = history[-1].question
    assert (merging.images, merging.json_schema) == ((), LEVELS.answer_schema)
    for level in ("dense: A dense", "medium: A medium", "short: A"):
        assert [f"{level} caption of part {i}." in merging.text for i in range(3)] == [True] * 3
    assert isinstance(end, Captioned)
    assert end.main_caption == "A dense caption of the whole."
    assert end.usage.answers == 4


def test_a_remainder_that_is_too_short_joins_the_window_before() -> None:
    _, history = talk(clip(9), SCRIPT, lambda asked, n: levels(f"part {n}"))
    assert [len(asked.question.images) for asked in history] == [4, 5, 0]


def test_fields_of_windows_are_merged_too() -> None:
    def reply(asked: PendingQuestion, n: int) -> str:
        return json.dumps(
            {name: f"the {name} of {n}" for name in STRUCTURED.fields} | {"dense": f"A caption of part {n}."}
        )

    end, history = talk(clip(8), replace(SCRIPT, describe=STRUCTURED), reply)
    assert "lighting: the lighting of 1" in history[-1].question.text
    assert isinstance(end, Captioned)
    assert end.fields == {name: f"the {name} of 2" for name in STRUCTURED.fields}


def test_a_rewriter_sees_words_alone_and_its_caption_is_the_main_one() -> None:
    def reply(asked: PendingQuestion, n: int) -> str:
        return "A boat in few words." if asked.role == "rewriter" else levels("a boat")

    end, history = talk(clip(), REWRITTEN, reply)
    assert [asked.role for asked in history] == ["captioner", "rewriter"]
    question = history[1].question
    assert (question.images, question.json_schema) == ((), None)
    assert "A dense caption of a boat." in question.text
    assert isinstance(end, Captioned)
    assert end.main_caption == "A boat in few words."
    assert list(end.captions) == ["rewritten", "dense", "medium", "short"]
    assert REWRITTEN.label == f"{LEVELS.label} > {REWRITTEN.rewrite.label if REWRITTEN.rewrite else ''}"


def test_an_unfit_answer_is_asked_for_again_with_another_seed() -> None:
    end, history = talk(
        clip(), SCRIPT, lambda asked, n: levels("a boat", short="I'm sorry, I can't.") if n == 0 else levels("a boat")
    )
    first, second = (asked.question for asked in history)
    assert (second.temperature, second.seed) == (0.7, 1)
    assert first.key != second.key
    assert replace(second, key=first.key, temperature=0.0, seed=0) == first
    assert isinstance(end, Captioned)
    assert (end.usage.answers, end.usage.cost_usd, end.key) == (2, 1.0, second.key)


def test_after_the_last_try_the_reasons_of_all_are_told() -> None:
    replies = ["{", levels("a boat", dense="")]
    end, history = talk(clip(), SCRIPT, lambda asked, n: replies[n])
    assert isinstance(end, Failed)
    assert end.reason == "truncated answer: its JSON breaks off after '{'; asked again: empty caption"
    assert (len(history), end.usage.answers, end.usage.tokens_out) == (2, 2, 20)
    end, history = talk(clip(), replace(SCRIPT, retries=0), lambda asked, n: "{")
    assert isinstance(end, Failed)
    assert (len(history), end.reason) == (1, "truncated answer: its JSON breaks off after '{'")


def test_a_window_that_fails_says_which_and_only_it_is_asked_again() -> None:
    def reply(asked: PendingQuestion, n: int) -> str:
        return "" if "from 4 to 8 seconds" in asked.question.text else levels("a part")

    end, history = talk(clip(8), SCRIPT, reply)
    assert isinstance(end, Failed)
    assert end.reason == "malformed answer: it is empty; asked again: malformed answer: it is empty (window 1)"
    assert ["from 0 to 4" in asked.question.text for asked in history] == [True, False, False]


def test_an_error_of_the_engine_is_not_asked_again() -> None:
    def reply(asked: PendingQuestion, n: int) -> Answer:
        return Answer(asked.question.key, "u1", error="BadRequest: too many pictures", cost_usd=0.25)

    end, history = talk(clip(), SCRIPT, reply)
    assert isinstance(end, Failed)
    assert (end.reason, end.usage.cost_usd) == ("unanswered question: BadRequest: too many pictures", 0.25)
    assert len(history) == 1


def test_a_truncated_answer_is_unfit_however_whole_it_is() -> None:
    def reply(asked: PendingQuestion, n: int) -> str | Answer:
        return Answer(asked.question.key, "u1", levels("a boat"), truncated=True) if n == 0 else levels("a boat")

    end, history = talk(clip(), SCRIPT, reply)
    assert isinstance(end, Captioned)
    assert len(history) == 2


def test_what_other_clips_show_to_be_unfit_is_asked_again() -> None:
    _, history = talk(clip(), SCRIPT, lambda asked, n: levels("a boat"))
    key = history[0].question.key
    end, again = talk(clip(), SCRIPT, lambda asked, n: levels(f"boat {n}"), {key: "duplicated caption: it is"})
    assert isinstance(end, Captioned)
    assert end.main_caption == "A dense caption of boat 1."
    end, _ = talk(
        clip(),
        SCRIPT,
        lambda asked, n: levels("a boat"),
        dict.fromkeys([a.question.key for a in again], "duplicated caption: it is"),
    )
    assert isinstance(end, Failed)
    assert end.reason == "duplicated caption: it is; asked again: duplicated caption: it is"


def test_an_engine_that_measures_gets_columns_and_no_prompt() -> None:
    script = ConversationSettings("signals-v2", columns=("kind", "luma"), kind="measured")
    end, history = talk(
        Clip("u1", {**COLUMNS, "luma": 0.4}, source_caption="a boat"), script, lambda asked, n: "a boat. A video."
    )
    question = history[0].question
    assert (question.text, question.columns, question.source_caption) == ("", {"kind": "video", "luma": 0.4}, "a boat")
    assert isinstance(end, Captioned)
    assert dict(end.captions) == {"measured": "a boat. A video.", "source": "a boat"}
    assert script.label is None


KEY_CHANGES: list[Callable[[Clip, ConversationSettings], tuple[Clip, ConversationSettings]]] = [
    lambda c, s: (replace(c, uid="u2"), s),
    lambda c, s: (replace(c, images=(*c.images[:-1], b"another")), s),
    lambda c, s: (replace(c, images=c.images[::-1]), s),
    lambda c, s: (replace(c, image_times_s=(*c.image_times_s[:-1], 7.5)), s),
    lambda c, s: (replace(c, columns={**COLUMNS, "camera": "zoom"}), s),
    lambda c, s: (replace(c, source_caption="a boat"), s),
    lambda c, s: (c, replace(s, captioner="engine-v2")),
    lambda c, s: (c, replace(s, language="de")),
    lambda c, s: (c, replace(s, describe=STRUCTURED)),
]


@pytest.mark.parametrize("change", KEY_CHANGES)
def test_a_key_covers_all_that_the_answer_depends_on(change: Callable[[Clip, ConversationSettings], tuple[Clip, ConversationSettings]]) -> None:
    assert keys(clip(), SCRIPT) != keys(*change(clip(), SCRIPT))


def test_a_key_covers_nothing_else() -> None:
    assert keys(clip(), SCRIPT) == keys(clip(luma=0.3), replace(SCRIPT, retries=5, window_size=256, min_window=9))


def keys(clip: Clip, script: ConversationSettings) -> list[str]:
    state = advance(clip, script, {}, {})
    assert isinstance(state, Pending)
    return [asked.question.key for asked in state.asked]


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


@given(
    st.integers(1, 14), st.lists(st.sampled_from(REPLIES), min_size=1, max_size=12), st.booleans(), st.integers(0, 3)
)
def test_any_answers_end_it_and_order_does_not_matter(
    n_pictures: int, replies: list[str], rewrites: bool, retries: int
) -> None:
    script = replace(REWRITTEN if rewrites else SCRIPT, retries=retries)

    def answer(question: Question) -> Answer:
        text = replies[int(question.key, 16) % len(replies)]
        error = "broke" if text == "error" else None
        return Answer(question.key, question.uid, text, error=error, tokens_in=1, cost_usd=0.5)

    def end(one_by_one: bool) -> Captioned | Failed:
        answers: dict[str, Answer] = {}
        while isinstance(state := advance(clip(n_pictures), script, answers, {}), Pending):
            asked = state.asked[-1:] if one_by_one else state.asked
            answers |= {a.question.key: answer(a.question) for a in asked}
            assert len(answers) <= (retries + 1) * (n_pictures + 2)
        return state

    together = end(one_by_one=False)
    separately = end(one_by_one=True)
    assert type(together) is type(separately)
    if isinstance(together, Captioned):
        assert together == separately
