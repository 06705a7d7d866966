"""Sidecar files, which hold the captions of the source file beside them, and its licence."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from captioning.cleaning import clean_caption
from cluster import listing, storage
from training.checkpoints.hub_metadata import UNKNOWN

SUFFIXES = (".txt", ".caption", ".json")
"""Suffixes of sidecars, in any case, the preferred first."""
MAX_BYTES = 16 << 20
"""Largest sidecar that is read: 3 hours of footage with 5,000 shots of 1 kB each take 5 MB."""
MAX_CHARACTERS = 100_000
"""Longest caption; detailed ones of captioners have about 3,000 characters."""
MAX_LICENSE_CHARACTERS = 200
"""Longest licence: an identifier or an address, not its text."""
JSON_FORM = (
    '{"caption": "...", "shots": [{"start_s": 0, "end_s": 2.5, "caption": "..."}], "license": "cc-by-4.0"}, '
    "shots and license optional"
)


@dataclass(frozen=True)
class TimedCaption:
    """The caption of a span of a file, in seconds from its first frame."""

    start_s: float
    end_s: float
    caption: str


@dataclass(frozen=True)
class Sidecar:
    """The captions of a file: one of the whole file, and any of spans; and its licence."""

    caption: str
    timed: tuple[TimedCaption, ...] = ()
    license: str = UNKNOWN
    """Identifier or address of the licence; `UNKNOWN` if the sidecar states none."""


def find_sidecars(uris: Iterable[str]) -> dict[str, storage.Entry]:
    """Return the sidecar beside each of these files that has one, by the file's URI without suffix."""
    stems = {os.path.splitext(uri)[0] for uri in uris}
    found: dict[str, tuple[tuple[int, bool, str], storage.Entry]] = {}
    for folder in sorted({stem.rpartition("/")[0] for stem in stems}):
        for entry in listing.files_beside(folder, SUFFIXES):
            stem, suffix = os.path.splitext(entry.uri)
            if stem in stems:
                candidate = ((SUFFIXES.index(suffix.lower()), suffix != suffix.lower(), suffix), entry)
                found[stem] = min(found.get(stem, candidate), candidate, key=lambda item: item[0])
    return {stem: entry for stem, (_, entry) in found.items()}


def read_sidecar(uri: str) -> Sidecar:
    """Read a caption file, which is UTF-8 text or JSON, and clean its captions (`captioning.cleaning`).

    JSON has the form `{"caption": "...", "shots": [{"start_s": 0, "end_s": 2.5, "caption": "..."}], "license": "..."}`.
    `shots` and `license` are optional, and so is `caption` beside a licence. Raises `ValueError` naming the file if it
    holds neither, a shot without a span of finite times, or more than the bounds above.
    """
    try:
        text = storage.read_bytes(uri, MAX_BYTES).decode("utf-8-sig")
        if not uri.lower().endswith(".json"):
            return Sidecar(_clean(text))
        data = json.loads(text)
        timed = [_timed_caption(number, shot) for number, shot in enumerate(data.get("shots", []), 1)]
        license_ = _license(data.get("license"))
        caption = "" if license_ != UNKNOWN and "caption" not in data else _clean(data["caption"])
        return Sidecar(caption, tuple(timed), license_)
    except storage.TooLargeError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"{uri}: no caption in it: it is not UTF-8 text ({error}); save it as UTF-8") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{uri}: no caption in it: {type(error).__name__}: {error}; a .json is {JSON_FORM}") from error


def _timed_caption(number: int, shot: Mapping[str, Any]) -> TimedCaption:
    start_s, end_s = float(shot["start_s"]), float(shot["end_s"])
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s < end_s):
        raise ValueError(
            f"shot {number} is from {start_s} to {end_s} s; times are finite, and the start is before the end"
        )
    return TimedCaption(start_s, end_s, _clean(shot["caption"]))


def _license(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_LICENSE_CHARACTERS:
        shown = repr(value)[:MAX_LICENSE_CHARACTERS]
        raise ValueError(
            f"license is {shown}; write its name or address in 1 to {MAX_LICENSE_CHARACTERS} characters, as cc-by-4.0"
        )
    return " ".join(value.split())


def _clean(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a caption is {type(text).__name__}, not text")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a caption has {len(text):,} characters; the longest that is read has {MAX_CHARACTERS:,}")
    return clean_caption(text)
