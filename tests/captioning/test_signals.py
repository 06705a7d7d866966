from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning import quality
from captioning.engine import ClipContext
from captioning.engines.signals import Signals, describe, sentence


def clip(uid: str = "u", caption: str | None = None, **columns: object) -> ClipContext:
    return ClipContext(uid, {"kind": "video", "width": 160, "height": 90, "luma": 0.5, "motion": 0.1, **columns}, caption)


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
def test_words_say_what_was_measured(columns: dict[str, object], expected: str) -> None:
    assert describe(clip(**columns).columns) == expected


def test_the_source_caption_goes_first() -> None:
    (caption,) = Signals().open().caption([clip(caption="  a red\ncircle ")])
    assert caption.text == "a red circle. A landscape video with motion."


@given(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=5))
def test_captions_stay_with_their_uids(uids: list[str]) -> None:
    clips = [clip(uid, caption=f"caption of {uid}") for uid in uids]
    forward, backward = Signals().open().caption(clips), Signals().open().caption(clips[::-1])
    assert {c.uid: c.text for c in forward} == {c.uid: c.text for c in backward}
    assert all(c.text.startswith(f"caption of {c.uid}.") for c in forward)


def test_sentences_end_once() -> None:
    assert [sentence(text) for text in ("", "a", "a.", "a!")] == ["", "a.", "a.", "a!"]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", "empty"),
        (" ... ", "empty"),
        ("I'm sorry, I cannot describe this.", "refused"),
        ("A dog runs on a beach.", None),
        ("the cat sat on the mat and " * 5, "looping"),
        ("A sorry sight: a wet dog.", None),
        (" Then".join(f" a {colour} ball rolls in front of a wall." for colour in ("red", "blue", "green", "grey", "white")), None),
    ],
)
def test_quality(caption: str, reason: str | None) -> None:
    fault = quality.fault(caption)
    assert fault is None if reason is None else fault is not None and fault.startswith(reason)
