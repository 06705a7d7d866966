"""Cleaning of captions: one set of rules for the answers of every engine and for the captions that come with sources.

Reasoning models write their thoughts before the answer unless the server removes them (`vllm serve` without a reasoning
parser does not), and models put an answer into a Markdown fence even if the prompt forbids it.
"""

from __future__ import annotations

import re

_TAG = "(?:think|thinking|thought|reasoning)"
REASONING_START = re.compile(rf"<{_TAG}>|◁think▷|\[THINK\]|<\|begin_of_thought\|>", re.IGNORECASE)
REASONING_END = re.compile(rf"</{_TAG}>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>", re.IGNORECASE)
"""Tags around the reasoning of Qwen3, DeepSeek-R1 and GLM (`<think>`), Kimi (`◁think▷`) and Magistral (`[THINK]`).
A chat template may hold the opening tag, so an answer may have the closing one alone."""
WRAPPER = re.compile(r"<answer>(.*)</answer>|<\|begin_of_box\|>(.*)<\|end_of_box\|>", re.DOTALL)
"""Tags around the whole answer of a reasoning model (GLM-4.1V-Thinking writes both)."""
FENCE = "```"
FENCE_START = re.compile(r"```[\w+-]*[ \t]*\n")
FENCE_END = re.compile(r"\n[ \t]*```[ \t]*")
SURROGATE = re.compile("[\ud800-\udfff]")
INVISIBLE = {code: None for code in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF) if not chr(code).isspace()}
"""Control characters that are no white space, and the byte order mark, mapped to nothing."""


class UnfitAnswerError(ValueError):
    """An answer that is truncated or malformed. The message begins with the class of the fault."""


def clean_caption(text: str) -> str:
    """Return a caption on one line, without reasoning, Markdown fence and characters that no text shows.

    Raises `UnfitAnswerError` if the reasoning has no end, or if a fence stands inside the caption.
    """
    caption = one_line(answer_body(text))
    if FENCE in caption:
        raise UnfitAnswerError(f"malformed answer: a Markdown fence inside the caption: {caption[:80]!r}")
    return caption


def answer_body(text: str) -> str:
    """Return an answer without the reasoning before it and without a Markdown fence or tags around it.

    Raises `UnfitAnswerError` if the reasoning has no end: the limit of tokens cut it off, and there is no answer.
    """
    text = after_reasoning(storable(text))
    if REASONING_START.search(text):
        raise UnfitAnswerError(f"truncated answer: its reasoning has no end, after {text[-60:]!r}; raise max_tokens")
    if wrapped := WRAPPER.fullmatch(text):
        text = (wrapped[1] or wrapped[2] or "").strip()
    if opened := FENCE_START.match(text):
        text = FENCE_END.sub("\n", "\n" + text[opened.end() :], count=1)
    return text.strip()


def after_reasoning(text: str) -> str:
    """Return the text after the last closing tag of reasoning; all of it if there is none."""
    end = max((tag.end() for tag in REASONING_END.finditer(text)), default=0)
    return text[end:].strip()


def one_line(text: str) -> str:
    """Return the text with each run of white space replaced by one blank, none at its ends, in storable characters."""
    return " ".join(storable(text).split())


def storable(text: str) -> str:
    """Return the text without NUL and other control characters, white space excepted, and without byte order marks.

    The halves of a surrogate pair are joined. A half alone, which neither UTF-8 nor Arrow can store, becomes U+FFFD.
    """
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return SURROGATE.sub("\ufffd", joined).translate(INVISIBLE)
