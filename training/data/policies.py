"""Dealing by a policy's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from training.data.deal import Deal, Policy, Samples, Table
from training.data.pack import pack
from training.data.slot import slot


def same(samples: Samples, world_size: int, limit: int | None) -> Table:
    """Samples of one bucket, in equal numbers but for one."""
    assert (samples.kinds // 2 == samples.kinds[0] // 2).all()
    place = np.arange(len(samples.kinds))
    share = -(-len(place) // world_size)
    n_micro = 1 if limit is None else -(-share // (limit // int(samples.tokens.max())))
    return Table(n_micro, place // world_size % n_micro, place % world_size)


POLICIES: Mapping[Policy, Callable[[Samples, int, int | None], Deal]] = {"same": same, "slot": slot, "pack": pack}
"""Each deals samples to that many workers, none of which may hold more tokens at once than the limit, if there is one."""
