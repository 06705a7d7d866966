"""Faults that make a caption unfit for training. A fault begins with its class, by which the ledger groups reasons."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import cache

from captioning.language import language_fault, unquoted

_THING = r"(?:images?|pictures?|photos?|videos?|clips?|frames?|footage|attachments?|content|visuals?|media|file)"
_SEE = (
    r"(?:see|view|access|watch|open|display|process|analy[sz]e|describe|caption|interpret|identify|determine|provide"
    r"|generate|create|help|assist|comply|answer)"
)
_CANNOT = r"(?:can(?:no|')t|can not|could(?: not|n't)|(?:am|'m) (?:not able|unable) to|won't|will not be able to)"
_MISSING = r"(?:provided|attached|uploaded|shared|included|given|supplied|available)"
REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\bI ?{_CANNOT} (?:\w+ ){{0,2}}{_SEE}\b",
        rf"\bI (?:do not|don't|can't|cannot) (?:actually )?see (?:any|an|a|the) {_THING}",
        rf"\bI (?:do not|don't) have (?:access to|the ability|any {_THING}|enough (?:information|context))",
        r"\bI(?:'m| am) (?:sorry|afraid I|unable to|not able to)\b",
        r"\bI apologi[sz]e\b",
        r"^(?:sorry|apologies|my apologies|unfortunately)\b[,.!:]",
        r"\bas an? (?:AI|artificial intelligence|(?:large )?language model|text-based|assistant)\b",
        rf"\bno {_THING} (?:\w+ )?(?:were|was|have been|has been|is|are|seems? to be|appears? to be) {_MISSING}",
        (
            rf"\b{_THING} (?:cannot|can't|could not|couldn't|did not|didn't|failed to) (?:be )?"
            r"(?:load|display|access|view|process|open)"
        ),
        (
            r"(?:^|[.!?] )(?:please|could you|can you|kindly) (?:please )?"
            rf"(?:provide|upload|share|attach|send|supply|re-?upload)\b.{{0,40}}\b{_THING}"
        ),
        (
            r"\b(?:violat\w+ (?:the |our |any )?|against (?:our |my ))(?:content |usage |safety |community )*"
            r"(?:polic(?:y|ies)|guidelines)\b"
        ),
        rf"^unable to {_SEE}\b",
        r"\bI(?:'d| would) be (?:happy|glad) to (?:help|describe|assist)\b",
        r"^(?:抱歉|对不起|很抱歉|我无法|申し訳|すみません|죄송)",
        r"^(?:Es tut mir leid|Ich kann (?:das|die|keine?)\b|Lo siento|Je suis désolée?|Désolée?\b)",
        r"^(?:Mi dispiace|Desculpe|Извините|К сожалению, я)",
    )
)
"""Phrases by which models refuse to answer, at the beginning of a caption or inside it. In them a model speaks of
itself, which no caption does. Quoted parts are not searched: they may be on a sign."""

PLACEHOLDERS = re.compile(
    r"(?:string|text|null|none|n/?a|todo|tbd|unknown|undefined|empty|placeholder|caption|description|lorem ipsum.*"
    r"|(?:short|medium|dense|your|the|insert)[ _-](?:\w+[ _-])?(?:caption|description|text|answer)(?: here| goes here)?"
    r"|[.…\-_*#\s]+|[<\[{(].*[>\]})])[.]?",
    re.IGNORECASE,
)
"""Captions that are placeholders as a whole: the name of a type, dots, or text in brackets."""
FIELD_PLACEHOLDERS = re.compile(r"string|text|null|undefined|placeholder|[.…\-_*#\s]+|[<\[{(].*[>\]})]", re.IGNORECASE)
"""Fields of an answer that are placeholders as a whole. A field, unlike a caption, may be "none" or "unknown"."""

LOOP_WORDS = 4
LOOP_REPEATS = 4
LOOP_SHARE = 0.5
"""A caption loops if `LOOP_REPEATS` copies of a run of `LOOP_WORDS` words make up at least `LOOP_SHARE` of it."""
LOOP_SENTENCES = 3
"""A caption also loops if a sentence of at least `LOOP_WORDS` words occurs this many times."""
ECHO_WORDS = 8
"""Length in words of a run that an answer copied from its prompt. The good captions of
`tests/captioning/test_quality.py` share runs of at most 2 words with the prompts."""
MIN_ECHO_WORDS = 4
"""Smallest length in words of a caption that is compared with its prompt."""
MIN_DUPLICATE_WORDS = 8
"""Smallest length in words of a caption that counts as a duplicate: different clips may share shorter ones."""

WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|\w+(?:['’]\w+)*")
"""A word, or one character of a script without blanks between words."""
SENTENCE = re.compile(r"[^.!?。！？]+")


def fault(caption: str, prompt_text: str = "", language: str | None = None) -> str | None:
    """Return why a caption is unfit, or None if it is fit.

    A caption is unfit if it is empty, a placeholder, a refusal, looping, a copy of `prompt_text`, or not in `language`.
    Its length is no fault, because clips differ in how much they show. `prompt_text` is `Prompt.static_text`, which
    lacks the values of the prompt's variables: an answer may repeat those.
    """
    text = caption.strip()
    if not re.search(r"\w", text):
        return "empty caption"
    if PLACEHOLDERS.fullmatch(text):
        return f"placeholder caption: {text[:80]!r}"
    said = unquoted(text.replace("’", "'"))
    for pattern in REFUSALS:
        if pattern.search(said.strip()):
            return f"refused caption: {text[:80]!r}"
    words = words_of(text)
    if repeated := _loop(text, words):
        return f"looping caption: {repeated}"
    if prompt_text and (echoed := _echo(words, prompt_text)):
        return f"prompt-echoing caption: {echoed[:80]!r} is the prompt's"
    if language is not None and (reason := language_fault(language, text)):
        return f"wrong-language caption: {reason}"
    return None


def field_fault(text: str) -> str | None:
    """Return why a field of a structured answer is unfit, or None. It may be short, but not a placeholder."""
    text = text.strip()
    if not text:
        return "empty caption"
    return f"placeholder caption: {text[:80]!r}" if FIELD_PLACEHOLDERS.fullmatch(text) else None


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def _loop(text: str, words: Sequence[str]) -> str | None:
    """Return what a caption repeats and how often, or None if it does not loop."""
    runs = Counter(_runs(words, LOOP_WORDS))
    for run, count in runs.most_common(1):
        if count >= LOOP_REPEATS and count * LOOP_WORDS >= LOOP_SHARE * len(words):
            return f"{' '.join(run)!r} occurs {count} times"
    sentences = Counter(tuple(words_of(sentence)) for sentence in SENTENCE.findall(text))
    for sentence, count in sentences.items():
        if len(sentence) >= LOOP_WORDS and count >= LOOP_SENTENCES:
            return f"{' '.join(sentence)[:80]!r} occurs {count} times"
    return None


def _echo(words: Sequence[str], prompt_text: str) -> str | None:
    """Return the first run of words that a caption shares with its prompt, or None."""
    size = min(ECHO_WORDS, len(words))
    if size < MIN_ECHO_WORDS:
        return None
    prompt_runs = _prompt_runs(prompt_text, size)
    return next((" ".join(run) for run in _runs(words, size) if run in prompt_runs), None)


@cache
def _prompt_runs(prompt_text: str, size: int) -> frozenset[tuple[str, ...]]:
    return frozenset(run for paragraph in prompt_text.split("\n\n") for run in _runs(words_of(paragraph), size))


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return all runs of `size` consecutive words."""
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


RETRY_SEPARATOR = "; asked again: "
"""Text between the faults of consecutive attempts in the reason of a failure."""
_CLASS = re.compile(
    r"(?:empty|placeholder|refused|looping|prompt-echoing|wrong-language|duplicated) caption"
    r"|(?:truncated|malformed) answer"
)


def fault_classes(reason: str) -> str:
    """Return the classes of the faults in a reason, such as 'refused caption, then looping caption'.

    A reason that does not consist of faults is returned unchanged.
    """
    attempts = [_CLASS.match(attempt) for attempt in reason.split(RETRY_SEPARATOR)]
    return ", then ".join(attempt[0] for attempt in attempts if attempt) if all(attempts) else reason


def duplicate_faults(captions: Mapping[str, str], origins: Mapping[str, tuple[Hashable, Hashable]]) -> dict[str, str]:
    """Return a fault, by uid, for each clip that shares the words of its caption with an unrelated clip.

    Clips are unrelated if they differ in source and in cluster of near-duplicates. `captions` and `origins` (source and
    cluster) are by uid; the cluster is None if near-duplicates were not searched. The result does not depend on the
    order of the clips.
    """
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for uid in sorted(captions):
        words = tuple(words_of(captions[uid]))
        if len(words) >= MIN_DUPLICATE_WORDS:
            groups[words].append(uid)
    found = {}
    for uids in groups.values():
        for uid in uids:
            others = [other for other in uids if _unrelated(origins[uid], origins[other])]
            if others:
                found[uid] = (
                    f"duplicated caption: {len(others)} clips of other sources have the same words, "
                    f"{captions[uid][:80]!r}"
                )
    return found


def _unrelated(one: tuple[Hashable, Hashable], other: tuple[Hashable, Hashable]) -> bool:
    return one[0] != other[0] and (one[1] is None or one[1] != other[1])
