"""FlashAttention's operator on a CPU, so that what GPUs run can be traced, compiled and compared without one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def flash_on_cpu() -> Iterator[None]:
    """Give FlashAttention's operator, forward and backward, an implementation on the CPU inside the block."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


def _forward(q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, *_: Any, **__: Any) -> Any:
    parts = [_weights(q[i], k[j]) @ _heads_first(v[j]) for i, j in _samples(cu_seq_q, cu_seq_k)]
    out = torch.cat([part.transpose(0, 1) for part in parts])
    return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64), torch.zeros(0), torch.zeros(0)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, *rest: Any, **_: Any
) -> Any:
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for i, j in _samples(*rest[:2]):
        weights, grad_out = _weights(q[i], k[j]), _heads_first(grad[i])
        grad_weights = grad_out @ _heads_first(v[j]).mT
        grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        gradients[0][i] = (grad_scores @ _heads_first(k[j])).transpose(0, 1)
        gradients[1][j] = (grad_scores.mT @ _heads_first(q[i])).transpose(0, 1)
        gradients[2][j] = (weights.mT @ grad_out).transpose(0, 1)
    return gradients


def _samples(cu_seq_q: Tensor, cu_seq_k: Tensor) -> list[tuple[slice, slice]]:
    """Return the queries and the keys of each sample."""
    pairs = [itertools.pairwise(ends.tolist()) for ends in (cu_seq_q, cu_seq_k)]
    return [(slice(*queries), slice(*keys)) for queries, keys in zip(*pairs, strict=True)]


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (_heads_first(q) @ _heads_first(k).mT / q.shape[-1] ** 0.5).softmax(-1)


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)
