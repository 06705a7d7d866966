"""Languages of captions: their names in prompts, the script each is written in, and whether a text is in one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGES = {
    "ar": ("Arabic", "ARABIC"),
    "bn": ("Bengali", "BENGALI"),
    "cs": ("Czech", "LATIN"),
    "da": ("Danish", "LATIN"),
    "de": ("German", "LATIN"),
    "el": ("Greek", "GREEK"),
    "en": ("English", "LATIN"),
    "es": ("Spanish", "LATIN"),
    "fa": ("Persian", "ARABIC"),
    "fi": ("Finnish", "LATIN"),
    "fr": ("French", "LATIN"),
    "he": ("Hebrew", "HEBREW"),
    "hi": ("Hindi", "DEVANAGARI"),
    "hu": ("Hungarian", "LATIN"),
    "id": ("Indonesian", "LATIN"),
    "it": ("Italian", "LATIN"),
    "ja": ("Japanese", "CJK"),
    "ko": ("Korean", "HANGUL"),
    "nl": ("Dutch", "LATIN"),
    "no": ("Norwegian", "LATIN"),
    "pl": ("Polish", "LATIN"),
    "pt": ("Portuguese", "LATIN"),
    "ro": ("Romanian", "LATIN"),
    "ru": ("Russian", "CYRILLIC"),
    "sv": ("Swedish", "LATIN"),
    "th": ("Thai", "THAI"),
    "tr": ("Turkish", "LATIN"),
    "uk": ("Ukrainian", "CYRILLIC"),
    "vi": ("Vietnamese", "LATIN"),
    "zh": ("Chinese", "CJK"),
}
"""ISO 639-1 code to English name and script, the latter as Unicode names its letters; kana counts as CJK."""

LEAST_SHARE = 0.7
"""Of a text's letters this share must be of the language's script: a quoted sign or a name may be in another."""
LEAST_LETTERS = 4
"""Texts with fewer letters are in no language in particular."""
LEAST_WORDS = 12
UNLIKELY = 0.01
"""A text of so many words is in another language of the same script if py3langid gives the wanted one at most this probability. It errs
on short texts, and on lists of names."""

ENOUGH = 400
"""Characters that tell a language; more only take time, 0.1 ms for these."""


def check_code(code: str) -> str:
    """The code itself. Raises `ValueError` listing the known ones."""
    if code not in LANGUAGES:
        raise ValueError(f"unknown language '{code}'; write one of {', '.join(LANGUAGES)}")
    return code


def not_in(code: str, text: str) -> str | None:
    """What speaks against a text being in a language, or None. Quoted words do not count: they may be what a sign says."""
    text = unquoted(text)
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            scripts[_script(character)] += count
    letters = scripts.total()
    name, script = LANGUAGES[code]
    if letters < LEAST_LETTERS:
        return None
    share = scripts[script] / letters
    if share < LEAST_SHARE:
        return f"{share:.0%} of its letters are {script.capitalize()}"
    if script != "LATIN" or len(text.split()) < LEAST_WORDS:
        return None
    likely = dict(_identifier().rank(text[:ENOUGH]))
    found = max(likely, key=lambda language: likely[language])
    return f"it is {LANGUAGES[found][0]}, not {name}" if likely[code] <= UNLIKELY else None


def unquoted(text: str) -> str:
    """The text without what stands in quotation marks."""
    return QUOTED.sub(" ", text)


QUOTED = re.compile(
    r"\"[^\"]{1,200}\"|“[^”]{1,200}”|„[^“”]{1,200}[“”]|«[^»]{1,200}»|「[^」]{1,200}」|(?<!\w)['‘][^'’]{1,200}['’](?!\w)"
)


@cache
def _script(character: str) -> str:
    first = unicodedata.name(character, "").partition(" ")[0]
    return "CJK" if first in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else first


@cache
def _identifier() -> LanguageIdentifier:
    # Reads 4.6 MB of weights in half a second, once a worker, and not for captions in another script.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code, (_, script) in LANGUAGES.items() if script == "LATIN"])
    return identifier
