"""Adapters that sampling merges into a model, as they are written in a recipe: FOLDER or FOLDER:WEIGHT."""

from __future__ import annotations

import math
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
    """Return the adapters of several texts."""
    return tuple(AdapterSource.parse(text) for text in texts)
