"""Names of weights in files that are those of a model up to a prefix."""

from __future__ import annotations

from collections.abc import Collection


def prefix_fault(expected: Collection[str], found: Collection[str]) -> str:
    """Return a sentence with the fix if names in a file have a prefix that a model's have not, or lack one.

    It is empty if they do not.
    """
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if not missing or not unknown:
        return ""
    first = unknown[0]
    if longer := next((name for name in expected if first.endswith(f".{name}")), None):
        prefix = first.removesuffix(longer)
        return f"its keys begin with {prefix}, and this model's do not; remove {prefix} from the keys"
    if shorter := next((name for name in expected if name.endswith(f".{first}")), None):
        prefix = shorter.removesuffix(first)
        return f"its keys lack {prefix}, with which this model's begin; put {prefix} before the keys"
    return ""
