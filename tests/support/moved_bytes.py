"""The bytes that operators of a training step read and write, counted on tensors without memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.fake_gpu import CHANNELS, TEXT_DIM
from training.models import _attention
from training.models.dit import DiT
from training.network import Condition

KINDS = {"mm": "products", "addmm": "products"} | {
    f"_flash_attention_{direction}": "attention" for direction in ("forward", "backward")
}
"""Kinds of operators by name; all others are `element-wise`."""


class MovedBytes(TorchDispatchMode):
    """The bytes that operators read and write inside the block, by kind.

    Each distinct input is read once and each output written once. Views move nothing, and of an expanded tensor only
    the elements that it has in memory count. The autograd engine runs on tensors of the device "meta", but not on fake
    GPU tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_kind: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(out)
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        is_view = not func._schema.is_mutable and storages.issuperset(x.untyped_storage()._cdata for x in written)
        name = func.overloadpacket.__name__
        if not is_view and not name.startswith(("empty", "new_empty")):
            self.by_kind[KINDS.get(name, "element-wise")] += sum(map(_bytes, [*read, *written]))
        return out


def _tensors(values: Any) -> list[Tensor]:
    return list({id(value): value for value in tree_leaves(values) if isinstance(value, Tensor)}.values())


def _bytes(tensor: Tensor) -> int:
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sides if stride)


class FusedNorm(torch.autograd.Function):
    """A norm that moves what the fused kernel of GPUs moves; on other devices torch decomposes `rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return grad * x, torch.empty_like(weight)


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    # Without a weight it normalises texts, outside of the blocks.
    return x if weight is None else FusedNorm.apply(x, weight)  # type: ignore[no-untyped-call, no-any-return]


def moved_by_block(settings: DiT, shapes: Sequence[tuple[int, int, int]], n_text: int) -> Counter[str]:
    """Return the bytes that one more block moves in a forward and backward pass in bf16 with FlashAttention, by kind.

    Latents have these shapes (T, H, W), and each has `n_text` text tokens.
    """
    fewer, more = (_moved(settings.model_copy(update={"depth": depth}), shapes, n_text) for depth in (1, 2))
    return more - fewer


def _moved(settings: DiT, shapes: Sequence[tuple[int, int, int]], n_text: int) -> Counter[str]:
    chosen = settings.model_copy(update={"attention": "varlen", "checkpointing": "none", "compile": False})
    with (
        patch.object(_attention, "can_run_varlen", return_value=True),
        patch("torch.nn.functional.rms_norm", _rms_norm),
        torch.device("meta"),
    ):
        model: nn.Module = chosen.build(CHANNELS, TEXT_DIM).to(torch.bfloat16)
        frames = [torch.empty(shape[0]) for shape in shapes]
        pairs = [torch.empty(len(shapes), 2) for _ in range(3)]
        texts = [torch.empty(n_text, TEXT_DIM) for _ in shapes]
        condition = Condition(texts, frames, frames, frames, torch.empty(len(shapes)), *pairs)
        with MovedBytes() as moved:
            predictions = model([torch.empty(CHANNELS, *shape) for shape in shapes], condition)
            torch.autograd.backward(predictions, [torch.empty_like(prediction) for prediction in predictions])
    return moved.by_kind
