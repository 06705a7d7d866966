"""Who computes what: the samples of a step dealt to workers and micro-steps, balanced by cost.

All workers wait for the dearest one in each micro-step, since ZeRO's collectives need all of them. So balance is wanted between the
workers of a micro-step; micro-steps may differ from each other. Policies, by name, are in `policies.py`.

Each worker works out its own part from the whole step, so all have to come to the same result, whatever machine each runs on: costs are whole
numbers, whose sums do not depend on the order of adding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

# Shape suffixes: B buckets; 2: without and with the last picture.

Int64s = NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.float64)

Policy = Literal["same", "slot", "pack"]


@dataclass(frozen=True, eq=False)
class Samples:
    """What is dealt: the samples of one step. A kind is a bucket's samples as they are, or those that are given their last picture."""

    kinds: Int64s
    """Of each sample: twice the number of its bucket, and one more where its last picture is given."""
    costs_B2: Int64s
    """Of a sample of each kind, in any unit; all above 0."""
    tokens_B2: Int64s

    @cached_property
    def costs(self) -> Int64s:
        """Of each sample."""
        return self.costs_B2.ravel()[self.kinds]

    @cached_property
    def tokens(self) -> Int64s:
        """Of each sample."""
        return self.tokens_B2.ravel()[self.kinds]


class Deal(ABC):
    """Where each sample of a step goes."""

    n_micro: int
    """Micro-steps of every worker."""

    @abstractmethod
    def of(self, rank: int) -> list[Int64s]:
        """Places of the samples of one worker in each micro-step, rising; it may have none in some."""

    def loads(self, costs: NDArray[Number], world_size: int) -> NDArray[Number]:
        """Sum of each worker's samples in each micro-step, `[n_micro, world_size]`, of whatever each sample is said to cost."""
        return np.array([[costs[places].sum() for places in self.of(rank)] for rank in range(world_size)]).T


@dataclass(frozen=True, eq=False)
class Table(Deal):
    """A deal of every sample, one by one."""

    n_micro: int
    micro: Int64s
    rank: Int64s

    def of(self, rank: int) -> list[Int64s]:
        own = np.flatnonzero(self.rank == rank)
        micro = self.micro[own]
        return [own[micro == number] for number in range(self.n_micro)]
