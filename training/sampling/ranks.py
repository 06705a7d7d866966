"""Processes that generate each sample together: they share its tokens (context parallelism), each on a GPU of its own.

`torchrun` starts them. Each has the whole model; activations and time of a forward pass are divided among them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from cluster.telemetry import console

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""Time for which the other processes wait while the first one decodes and writes a sample."""


@dataclass(frozen=True)
class SamplingRanks:
    """The processes that share each sample. All of them make the same samples, and the first one writes the files."""

    group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that reads inputs, decodes and writes."""
        return self.group.rank() == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process, on all of them; the others do not call it."""
        result = [make() if self.is_first else None]
        dist.broadcast_object_list(result, src=0, group=self.group)
        value: T = result[0]  # type: ignore[assignment]
        return value


def is_shared() -> bool:
    """Return whether `torchrun` started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def sampling_ranks() -> Iterator[SamplingRanks | None]:
    """Join the processes that `torchrun` started together with this one; None if it was started alone.

    All but the first show neither progress nor warnings.
    """
    if not is_shared():
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(timeout=TIMEOUT)
    try:
        assert dist.group.WORLD is not None
        ranks = SamplingRanks(dist.group.WORLD)
        console.quiet = not ranks.is_first
        yield ranks
        # The first process still writes the last sample, and the others keep its connections alive.
        dist.barrier()
    finally:
        console.quiet = False
        dist.destroy_process_group()
