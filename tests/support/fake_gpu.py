"""Fake GPU tensors: shapes, types and devices without memory or computation, on machines without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.fake_cuda import on_fake_cuda
from training.models.dit import DiT
from training.network import Condition

CHANNELS, TEXT_DIM = 16, 64


class FlashAttention(torch.autograd.Function):
    """An attention kernel without computation that keeps what a flash-attention kernel keeps.

    For fake tensors torch chooses a kernel that keeps all scores.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], device=q.device))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def kept_bytes(settings: DiT, shapes: Sequence[tuple[int, int, int]], n_text: int) -> int:
    """Return the bytes that a bf16 forward pass of latents of these shapes (T, H, W) keeps on a GPU for the backward
    pass, without the weights.
    """
    with torch.device("meta"):
        model = settings.build(CHANNELS, TEXT_DIM)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        on_fake_cuda(model, torch.bfloat16)
        frames = [torch.empty(shape[0]) for shape in shapes]
        pairs = [torch.empty(len(shapes), 2) for _ in range(3)]
        texts = [torch.empty(n_text, TEXT_DIM) for _ in shapes]
        condition = Condition(texts, frames, frames, frames, torch.empty(len(shapes)), *pairs)
        weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        # Storages are kept, because the address of a freed one may be used again.
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        with (
            patch("torch.nn.functional.scaled_dot_product_attention", FlashAttention.apply),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            model([torch.empty(CHANNELS, *shape) for shape in shapes], condition)
        return sum(storage.nbytes() for storage in kept.values())
