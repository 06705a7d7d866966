"""Assignment of the samples of a step to ranks and micro-steps, balanced by cost.

A micro-batch is one forward and backward pass of one rank; a micro-step is the micro-batches of all ranks that run at
the same time. In each micro-step all ranks wait for the one with the highest cost, since ZeRO's collectives need every
rank. So costs are balanced between the ranks of a micro-step, and micro-steps may differ from each other.

Every rank computes the assignment of the whole step and takes its own part, so all ranks must get the same result on
any machine. Costs are therefore integers, whose sums do not depend on the order of addition.

This module has the common types. `pack.py` assigns samples of any shapes together, and `bucketed.py` those of one
bucket, for models that cannot compute several shapes in one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Int64Array

# Shape suffixes: B buckets; 2: a sample without and with its last-frame latent.

Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True, eq=False)
class Workload:
    """The costs and tokens of the samples of one step, stored once per shape.

    Samples of one bucket have one of two shapes: without or with the last-frame latent that conditions them.
    """

    shape_ids: Int64Array
    """Index of each sample's shape into the flattened `costs_B2` and `tokens_B2`: twice its bucket's number, plus 1
    with its last-frame latent."""
    costs_B2: Int64Array
    """Cost of a sample of each shape, above 0. Any unit: only ratios matter."""
    tokens_B2: Int64Array
    """Latent cells of a sample of each shape."""

    @cached_property
    def costs(self) -> Int64Array:
        """Cost of each sample."""
        return self.costs_B2.ravel()[self.shape_ids]

    @cached_property
    def tokens(self) -> Int64Array:
        """Latent cells of each sample."""
        return self.tokens_B2.ravel()[self.shape_ids]


@dataclass(frozen=True, eq=False)
class Assignment:
    """The rank and the micro-step of each sample of a step."""

    n_micro_steps: int
    """Number of micro-steps, the same on all ranks."""
    micro_steps: Int64Array
    ranks: Int64Array

    def sample_indices(self, rank: int) -> list[Int64Array]:
        """Return the ascending indices of one rank's samples for each micro-step; an array may be empty."""
        of_rank = np.flatnonzero(self.ranks == rank)
        micro_steps = self.micro_steps[of_rank]
        return [of_rank[micro_steps == number] for number in range(self.n_micro_steps)]

    def loads(self, costs: NDArray[Number], world_size: int) -> NDArray[Number]:
        """Return the sum of the samples' costs by micro-step and rank, `[n_micro_steps, world_size]`."""
        loads = np.zeros((self.n_micro_steps, world_size), costs.dtype)
        np.add.at(loads, (self.micro_steps, self.ranks), costs)
        return loads


def argsort_ascending(values: Int64Array) -> Int64Array:
    """Return the indices that sort integers in ascending order, equal ones in their order.

    It gives what a stable argsort gives, several times as fast: each key has its index as its low bits, so no two keys
    are equal and sorting the keys sorts the indices. The integers must not be negative, and must leave as many bits of
    63 free as an index takes.
    """
    bits = max(len(values) - 1, 0).bit_length()
    assert not len(values) or (values.min() >= 0 and int(values.max()) < 2 ** (63 - bits)), bits
    keys: Int64Array = values << bits
    keys |= np.arange(len(values))
    keys.sort()
    keys &= 2**bits - 1
    return keys


def argsort_descending(values: Int64Array) -> Int64Array:
    """Return the indices that sort integers in descending order, equal ones in their order; see `argsort_ascending`."""
    return argsort_ascending(values.max() - values) if len(values) else np.zeros(0, np.int64)
