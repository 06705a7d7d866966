"""Connected components of a graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cluster.arrays import Int64Array


def components(n: int, edges: Iterable[tuple[int, int]]) -> Int64Array:
    """Return for each of n nodes the smallest node it is connected with (union by smallest, path halving)."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in edges:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    # A parent is never larger than its child, so one pass in order is enough.
    for i in range(n):
        parent[i] = parent[parent[i]]
    return np.array(parent, np.int64)
