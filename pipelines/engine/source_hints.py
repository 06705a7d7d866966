"""Why a pattern of sources matches no file, as far as its folder tells."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections import Counter
from pathlib import Path

from cluster import storage

MAX_LOOKED_AT = 10_000
"""Most files whose suffixes are counted."""
MAX_SUFFIXES = 5


def why_nothing_matches(pattern: str) -> str:
    """Return what is wrong with a local pattern and how to mend it; empty for a remote one, or if nothing is seen."""
    if not storage.is_local(pattern):
        return ""
    uri = storage.absolute(pattern)
    if Path(uri).is_dir():
        return f"it is a folder; write {uri}/**/* with a suffix, such as {uri}/**/*.mp4"
    fixed = re.split(r"[*?\[{]", uri, maxsplit=1)[0]
    folder = Path(fixed if fixed.endswith("/") else fixed.rpartition("/")[0] or "/")
    if not folder.is_dir():
        return _missing(folder)
    found = _suffixes(folder, recursive="**" in uri)
    if not found:
        return f"{folder} holds no file"
    listed = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in found.most_common(MAX_SUFFIXES))
    return f"{folder} holds {listed}; capital and small letters differ"


def _missing(folder: Path) -> str:
    parent = next(parent for parent in folder.parents if parent.is_dir())
    name = folder.relative_to(parent).parts[0]
    try:
        siblings = [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    except PermissionError:
        siblings = []
    close = difflib.get_close_matches(name, siblings, n=1)
    hint = f"; did you mean {parent / close[0]}?" if close else ""
    return f"there is no folder {parent / name}{hint}"


def _suffixes(folder: Path, recursive: bool) -> Counter[str]:
    """Return how many of the first files below a folder, or in it, have each suffix."""
    walk = os.walk(folder)
    folders = walk if recursive else itertools.islice(walk, 1)
    names = itertools.chain.from_iterable(names for _, _, names in folders)
    return Counter(os.path.splitext(name)[1] for name in itertools.islice(names, MAX_LOOKED_AT))
