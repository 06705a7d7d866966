"""Captions are cleaned by one set of rules, whatever wrote them."""

from __future__ import annotations

import pytest

from captioning.cleaning import UnfitAnswerError, after_reasoning, answer_body, clean_caption, storable


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("A dog runs.", "A dog runs."),
        ("  A dog\n runs. ", "A dog runs."),
        ("\ufeffA dog runs.", "A dog runs."),
        ("A dog\x00 runs.\x07", "A dog runs."),
        ("A dog \ud83d runs.", "A dog \ufffd runs."),
        ("A dog \ud83d\ude00 runs.", "A dog 😀 runs."),
        ("<think>They want a caption.</think>A dog runs.", "A dog runs."),
        ("They want a caption.\n</think>\n\nA dog runs.", "A dog runs."),
        ("<think>a</think><think>b</think> A dog runs.", "A dog runs."),
        ("◁think▷They want a caption.◁/think▷A dog runs.", "A dog runs."),
        ("[THINK]They want a caption.[/THINK]A dog runs.", "A dog runs."),
        ("<think>x</think><answer>A dog runs.</answer>", "A dog runs."),
        ("```\nA dog runs.\n```", "A dog runs."),
        ("```text\nA dog runs.\n```", "A dog runs."),
        ("```\nA dog runs.\n``` It barks.", "A dog runs. It barks."),
        ("<think>x</think>\n```\nA dog runs.\n```", "A dog runs."),
        ("A sign with the words 'no > yes'.", "A sign with the words 'no > yes'."),
        ("Ein Hund läuft — schnell.", "Ein Hund läuft — schnell."),
        ("", ""),
    ],
)
def test_caption_is_cleaned(text: str, caption: str) -> None:
    assert clean_caption(text) == caption


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>They want a caption. I should describe the dog", "truncated answer: its reasoning has no end"),
        ("<THINK>a</THINK><think>b", "truncated answer: its reasoning has no end"),
        ("Here it is:\n```\nA dog runs.\n```", "malformed answer: a Markdown fence inside"),
        ("```\nA dog runs.\n```\n```\nA cat runs.\n```", "malformed answer: a Markdown fence inside"),
    ],
)
def test_text_that_holds_no_clear_caption_is_unfit(text: str, reason: str) -> None:
    with pytest.raises(UnfitAnswerError, match=reason):
        clean_caption(text)


def test_json_is_taken_out_of_reasoning_and_fence() -> None:
    assert answer_body('<think>{"a": 1}</think>\n```json\n{"a": 2}\n```') == '{"a": 2}'


def test_text_without_a_closing_tag_is_all_answer() -> None:
    assert after_reasoning(" A dog runs. ") == "A dog runs."


def test_storable_text_keeps_lines_and_tabs() -> None:
    assert storable("a\tb\r\nc\u200d") == "a\tb\r\nc\u200d"
