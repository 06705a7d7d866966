"""What makes a caption unfit to train on. A fault begins with its class, so that the ledger can group by it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import cache

from captioning.language import not_in, unquoted

_THING = r"(?:images?|pictures?|photos?|videos?|clips?|frames?|footage|attachments?|content|visuals?|media|file)"
_SEE = (
    r"(?:see|view|access|watch|open|display|process|analy[sz]e|describe|caption|interpret|identify|determine|provide|generate|create|help|assist"
    r"|comply|answer)"
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
        rf"\b{_THING} (?:cannot|can't|could not|couldn't|did not|didn't|failed to) (?:be )?(?:load|display|access|view|process|open)",
        rf"(?:^|[.!?] )(?:please|could you|can you|kindly) (?:please )?(?:provide|upload|share|attach|send|supply|re-?upload)\b.{{0,40}}\b{_THING}",
        r"\b(?:violat\w+ (?:the |our |any )?|against (?:our |my ))(?:content |usage |safety |community )*(?:polic(?:y|ies)|guidelines)\b",
        rf"^unable to {_SEE}\b",
        r"\bI(?:'d| would) be (?:happy|glad) to (?:help|describe|assist)\b",
        r"^(?:抱歉|对不起|很抱歉|我无法|申し訳|すみません|죄송|Es tut mir leid|Ich kann (?:das|die|keine?)\b|Lo siento|Je suis désolée?|Désolée?\b)",
        r"^(?:Mi dispiace|Desculpe|Извините|К сожалению, я)",
    )
)
"""Phrasings of models that do not answer, at the beginning or inside. They speak of themselves, as no caption does; what stands in quotation
marks is not looked at, for it may be what a sign says."""

PLACEHOLDERS = re.compile(
    r"(?:string|text|null|none|n/?a|todo|tbd|unknown|undefined|empty|placeholder|caption|description|lorem ipsum.*"
    r"|(?:short|medium|dense|your|the|insert)[ _-](?:\w+[ _-])?(?:caption|description|text|answer)(?: here| goes here)?"
    r"|[.…\-_*#\s]+|[<\[{(].*[>\]})])[.]?",
    re.IGNORECASE,
)
"""What stands for a caption where there is none: the whole of it is a type's name, dots, or something in brackets."""
FIELD_PLACEHOLDERS = re.compile(r"string|text|null|undefined|placeholder|[.…\-_*#\s]+|[<\[{(].*[>\]})]", re.IGNORECASE)

LOOP_WORDS = 4
LOOP_REPEATS = 4
LOOP_SHARE = 0.5
"""A run of this many words that comes this many times and makes up half of the caption is a model going in circles."""
LOOP_SENTENCES = 3
"""So is a sentence of `LOOP_WORDS` words or more that comes this many times."""
ECHO_WORDS = 8
"""So many words in a row are no accident: in `tests/captioning/test_quality.py` good captions share 2 with the prompts at most."""
SHORTEST_ECHO = 4
DUPLICATE_WORDS = 8
"""Shorter captions are the same of different clips for good reason."""

WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|\w+(?:['’]\w+)*")
"""A word, or one character of a script that has no blanks between words."""
SENTENCE = re.compile(r"[^.!?。！？]+")


def fault(caption: str, own_words: str = "", language: str | None = None) -> str | None:
    """Why a caption is unfit, or None: empty, placeholder, refused, looping, echoing its prompt's `own_words`, or not in the `language`.

    Length is no fault: how much there is to say is the clip's. `own_words` must not hold what filled the prompt's blanks (`Prompt.own_words`).
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
    if own_words and (echoed := _echo(words, own_words)):
        return f"prompt-echoing caption: {echoed[:80]!r} is the prompt's"
    if language is not None and (reason := not_in(language, text)):
        return f"wrong-language caption: {reason}"
    return None


def field_fault(text: str) -> str | None:
    """Why a field of a structured answer is unfit, or None: it may be a word or two, but not a placeholder."""
    text = text.strip()
    if not text:
        return "empty caption"
    return f"placeholder caption: {text[:80]!r}" if FIELD_PLACEHOLDERS.fullmatch(text) else None


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _loop(text: str, words: Sequence[str]) -> str | None:
    runs = Counter(_runs(words, LOOP_WORDS))
    for run, count in runs.most_common(1):
        if count >= LOOP_REPEATS and count * LOOP_WORDS >= LOOP_SHARE * len(words):
            return f"{' '.join(run)!r} comes {count} times"
    sentences = Counter(tuple(words_of(sentence)) for sentence in SENTENCE.findall(text))
    for sentence, count in sentences.items():
        if len(sentence) >= LOOP_WORDS and count >= LOOP_SENTENCES:
            return f"{' '.join(sentence)[:80]!r} comes {count} times"
    return None


def _echo(words: Sequence[str], own_words: str) -> str | None:
    size = min(ECHO_WORDS, len(words))
    if size < SHORTEST_ECHO:
        return None
    own = _own_runs(own_words, size)
    return next((" ".join(run) for run in _runs(words, size) if run in own), None)


@cache
def _own_runs(own_words: str, size: int) -> frozenset[tuple[str, ...]]:
    return frozenset(run for line in own_words.split("\n\n") for run in _runs(words_of(line), size))


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


AGAIN = "; asked again: "
"""Between the faults of one try and of the next."""
_CLASS = re.compile(
    r"(?:empty|placeholder|refused|looping|prompt-echoing|wrong-language|duplicated) caption|(?:truncated|malformed) answer"
)


def in_brief(reason: str) -> str:
    """The classes of the faults in a reason, 'refused caption, then looping caption', without the words of each clip; any other reason whole."""
    tries = [_CLASS.match(one) for one in reason.split(AGAIN)]
    return ", then ".join(one[0] for one in tries if one) if all(tries) else reason


def duplicates(captions: Mapping[str, str], origins: Mapping[str, tuple[Hashable, Hashable]]) -> dict[str, str]:
    """Clips whose caption says nothing of them in particular: another clip has the very same, of another source and another cluster.

    `captions` and `origins` (source and cluster, the latter None where near-duplicates were not looked for) are by uid. Returns the fault
    of each such clip; which ones they are does not depend on the order.
    """
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for uid in sorted(captions):
        words = tuple(words_of(captions[uid]))
        if len(words) >= DUPLICATE_WORDS:
            groups[words].append(uid)
    found = {}
    for uids in groups.values():
        for uid in uids:
            others = [other for other in uids if _apart(origins[uid], origins[other])]
            if others:
                found[uid] = (
                    f"duplicated caption: {len(others)} clips of other sources have the same words, {captions[uid][:80]!r}"
                )
    return found


def _apart(one: tuple[Hashable, Hashable], other: tuple[Hashable, Hashable]) -> bool:
    return one[0] != other[0] and (one[1] is None or one[1] != other[1])
