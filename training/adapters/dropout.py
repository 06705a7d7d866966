"""Dropout of adapters, whose random numbers follow from the seed of the run, the step, the micro-batch and the rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from training.adapters.settings import AdapterSettings
from training.rng import hash64


class TrainingDropout(nn.Dropout):
    """Dropout that drops nothing where no gradient is kept, as in validation."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) if torch.is_grad_enabled() else input


@contextlib.contextmanager
def keyed_dropout(adapter: AdapterSettings | None, device: torch.device, seed: int, *keys: int) -> Iterator[None]:
    """Let the dropout of an adapter in the block, if it has any, depend on the seed and these keys alone.

    Torch's global random state is afterwards what it was.
    """
    if adapter is None or adapter.dropout == 0:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(hash64(seed, "dropout", *keys) % 2**63)
        yield
