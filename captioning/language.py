"""Languages of captions: their English names, the script of each, and a check of the language of a text."""

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
"""English name and script by ISO 639-1 code. The script is the first word of the Unicode names of its letters; kana
counts as CJK."""

MIN_SCRIPT_SHARE = 0.7
"""Smallest share of the letters of a text that must belong to the script of the language. Names may be in another."""
MIN_LETTERS = 4
"""Smallest number of letters of a text whose script is checked."""
MIN_WORDS = 12
"""Smallest number of words of a text that py3langid checks; it errs on shorter texts."""
MAX_WRONG_PROBABILITY = 0.01
"""Largest probability of the expected language, by py3langid, at which a text counts as written in another language.
The limit is this low because py3langid errs on lists of names."""
MAX_CHARACTERS = 400
"""Number of characters that py3langid reads, in 0.1 ms; more do not change the result."""


def check_code(code: str) -> str:
    """Return the code unchanged. Raises `ValueError` listing the known codes if it is unknown."""
    if code not in LANGUAGES:
        raise ValueError(f"unknown language '{code}'; write one of {', '.join(LANGUAGES)}")
    return code


def language_fault(code: str, text: str) -> str | None:
    """Return why a text is not in a language, or None if it may be. Quoted words do not count."""
    text = unquoted(text)
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            scripts[_script(character)] += count
    letters = scripts.total()
    name, script = LANGUAGES[code]
    if letters < MIN_LETTERS:
        return None
    share = scripts[script] / letters
    if share < MIN_SCRIPT_SHARE:
        return f"{share:.0%} of its letters are {script.capitalize()}"
    if script != "LATIN" or len(text.split()) < MIN_WORDS:
        return None
    probabilities = dict(_identifier().rank(text[:MAX_CHARACTERS]))
    likeliest = max(probabilities, key=lambda language: probabilities[language])
    return f"it is {LANGUAGES[likeliest][0]}, not {name}" if probabilities[code] <= MAX_WRONG_PROBABILITY else None


def unquoted(text: str) -> str:
    """Return the text without its quoted parts, which may be the writing on a sign."""
    return QUOTED.sub(" ", text)


QUOTED = re.compile(
    r"\"[^\"]{1,200}\"|“[^”]{1,200}”|„[^“”]{1,200}[“”]|«[^»]{1,200}»|「[^」]{1,200}」|(?<!\w)['‘][^'’]{1,200}['’](?!\w)"
)


@cache
def _script(character: str) -> str:
    """Return the script of a letter, as `LANGUAGES` names it."""
    first = unicodedata.name(character, "").partition(" ")[0]
    return "CJK" if first in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else first


@cache
def _identifier() -> LanguageIdentifier:
    """Return py3langid's model for the languages in Latin script.

    Loading its 4.6 MB takes half a second, once per worker, and only when the first caption in Latin script is checked.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code, (_, script) in LANGUAGES.items() if script == "LATIN"])
    return identifier
