"""Adapters that sampling merges into a model, as they are written in a recipe: FOLDER or FOLDER:WEIGHT."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cluster import storage


class AdapterSource(NamedTuple):
    """An adapter's folder, and the factor of its change."""

    uri: str
    weight: float

    @classmethod
    def parse(cls, text: str) -> AdapterSource:
        """Return the adapter of a text FOLDER or FOLDER:WEIGHT; the weight is 1 without a number.

        Raises `ValueError` for no folder, and for a weight that is not finite.
        """
        folder, separator, number = text.rpartition(":")
        try:
            weight = float(number) if separator else 1.0
        except ValueError:  # the colon is one of the folder's
            folder, weight = text, 1.0
        folder = folder if separator else text
        if not folder or not math.isfinite(weight):
            raise ValueError(f"adapter '{text}' is not FOLDER or FOLDER:WEIGHT, such as runs/style/run-1/export:0.8")
        return cls(storage.absolute(folder), weight)


def parse_all(texts: Sequence[str]) -> tuple[AdapterSource, ...]:
    """Return the adapters of several texts. Raises `ValueError` as `check_given_once`."""
    sources = tuple(AdapterSource.parse(text) for text in texts)
    check_given_once(sources)
    return sources


def check_given_once(sources: Sequence[AdapterSource]) -> None:
    """Raise `ValueError` for an adapter that is given twice: it may be meant to count once or twice."""
    for uri, count in Counter(source.uri for source in sources).items():
        if count > 1:
            total = sum(source.weight for source in sources if source.uri == uri)
            raise ValueError(f"adapter {uri} is given {count} times; give it once, with the sum: {uri}:{total:g}")
