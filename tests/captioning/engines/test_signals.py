"""Engine signals: its captions state measured columns after the caption that came with the source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.engine import Question
from captioning.engines.signals import Signals, as_sentence, describe


def question(uid: str = "u", caption: str | None = None, **columns: object) -> Question:
    """Return a question about a clip, with some measured columns changed."""
    measured = {"kind": "video", "width": 160, "height": 90, "luma": 0.5, "motion": 0.1, **columns}
    return Question(f"key of {uid}", uid, "", columns=measured, source_caption=caption)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "A landscape video with motion."),
        ({"luma": 0.1, "motion": 0.0}, "A dark landscape video with no motion."),
        ({"luma": 0.9, "width": 90, "height": 160, "motion": 0.01}, "A bright portrait video with slow motion."),
        ({"kind": "image", "width": 100, "height": 100, "motion": None}, "A square image."),
        ({"motion": 3.0, "luma": None}, "A landscape video with fast motion."),
    ],
)
def test_description_states_the_measured_columns(columns: dict[str, object], expected: str) -> None:
    assert describe(question(**columns).columns) == expected


def test_source_caption_is_first() -> None:
    (answer,) = Signals().open().answer([question(caption="  a red\ncircle ")])
    assert answer.text == "a red circle. A landscape video with motion."


@pytest.mark.slow
@given(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=5))
def test_captions_stay_with_their_uids(uids: list[str]) -> None:
    questions = [question(uid, caption=f"caption of {uid}") for uid in uids]
    forward, backward = list(Signals().open().answer(questions)), list(Signals().open().answer(questions[::-1]))
    assert {answer.uid: answer for answer in forward} == {answer.uid: answer for answer in backward}
    assert all(
        answer.text.startswith(f"caption of {answer.uid}.") and answer.key == f"key of {answer.uid}"
        for answer in forward
    )


def test_sentences_end_once() -> None:
    assert [as_sentence(text) for text in ("", "a", "a.", "a!")] == ["", "a.", "a.", "a!"]
