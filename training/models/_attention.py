"""Attention that keeps the samples of a packed sequence apart, by one of three kernels.

A pack's samples lie one after the other in one sequence, without padding. Queries of a sample see the keys of that
sample only. The kernels differ in speed, and in their numbers by rounding only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models._packing import integer_tensor

if TYPE_CHECKING:
    # The import brings the compiler of torch, and takes 1.6 s; only GPUs need it.
    from torch.nn.attention.flex_attention import BlockMask

# Shape suffixes: S queries and N keys of the whole pack, A heads, K width of a head, B samples, 1 a batch of one.

AttentionKernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function from queries `[S, A, K]`, keys and values `[N, A, K]` to `[S, A, K]`."""
MAX_FLASH_WIDTH = 256
"""Largest width of a head that FlashAttention has kernels for."""


def attention_kernel(
    name: str,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    head_width: int,
) -> AttentionKernel:
    """Return the kernel for a pack whose samples have these numbers of queries and keys.

    `name` is `sdpa`, `varlen`, `flex` or `auto`: `sdpa` for self-attention of samples of equal lengths and where
    `varlen` cannot run, and `varlen` otherwise. Raises `ValueError` for a kernel that cannot run on this device, in
    this precision or with heads of this width.
    """
    assert len(query_lengths) == len(key_lengths), (query_lengths, key_lengths)
    groups = tuple(
        EqualSamples(len(list(samples)), n_queries, n_keys)
        for (n_queries, n_keys), samples in itertools.groupby(zip(query_lengths, key_lengths, strict=True))
    )
    runs_varlen = can_run_varlen(device, dtype, head_width)
    if name == "auto":
        # Texts have many lengths, and cuDNN, which sdpa may choose, prepares anew for each.
        is_equal = len(groups) == 1 and groups[0].n_queries == groups[0].n_keys
        name = "varlen" if runs_varlen and not is_equal else "sdpa"
    if name == "sdpa":
        return BatchedAttention(len(query_lengths)) if len(groups) == 1 else GroupedAttention(groups)
    if name == "varlen":
        if not runs_varlen:
            raise ValueError(
                "attention varlen needs a GPU, bf16 and heads whose width is a multiple of 8 and at most "
                f"{MAX_FLASH_WIDTH}; this is {device.type}, {dtype}, width {head_width}; set attention to auto or sdpa"
            )
        return VarlenAttention(
            _cumulative(query_lengths, device),
            _cumulative(key_lengths, device),
            _power_of_two_at_least(max(query_lengths)),
            _power_of_two_at_least(max(key_lengths)),
        )
    assert name == "flex", name
    if device.type != "cuda":
        raise ValueError(
            f"attention flex needs a GPU to train, and this is {device.type}; set attention to auto or sdpa"
        )
    return FlexAttention(document_mask(query_lengths, key_lengths, device), _compiled_flex())


def can_run_varlen(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Return whether FlashAttention's kernel for samples of different lengths can run."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and head_width % 8 == 0 and head_width <= MAX_FLASH_WIDTH


class EqualSamples(NamedTuple):
    """Adjacent samples of a pack that have the same lengths."""

    n_samples: int
    n_queries: int
    """Queries per sample."""
    n_keys: int
    """Keys per sample."""


@dataclass(frozen=True)
class BatchedAttention:
    """Scaled dot-product attention of samples of the same lengths: viewed as a batch, without a copy, in one call."""

    n_samples: int

    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        q_BASK, k_BANK, v_BANK = (
            torch.unflatten(x, 0, (self.n_samples, -1)).transpose(1, 2) for x in (q_SAK, k_NAK, v_NAK)
        )
        return F.scaled_dot_product_attention(q_BASK, k_BANK, v_BANK).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class GroupedAttention:
    """Scaled dot-product attention in one call per group of samples of the same lengths."""

    groups: tuple[EqualSamples, ...]

    # Excluded from compiled graphs (`compiled_block`): lengths differ from pack to pack, and each combination would be
    # compiled anew.
    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        query_splits = [group.n_samples * group.n_queries for group in self.groups]
        key_splits = [group.n_samples * group.n_keys for group in self.groups]
        q_parts, k_parts = torch.split(q_SAK, query_splits), torch.split(k_NAK, key_splits)
        v_parts = torch.split(v_NAK, key_splits)
        return torch.cat(
            [
                BatchedAttention(group.n_samples)(q, k, v)
                for group, q, k, v in zip(self.groups, q_parts, k_parts, v_parts, strict=True)
            ]
        )


@dataclass(frozen=True)
class VarlenAttention:
    """FlashAttention's kernel for sequences of different lengths, in one call (Dao 2023).

    `torch.nn.attention.varlen.varlen_attn` would choose cuDNN on Hopper and Blackwell GPUs (torch 2.14), which builds
    a plan for each new set of lengths and keeps all of them. FlashAttention needs no plan. An implementation that
    `torch.nn.attention.activate_flash_attention_impl` has set replaces torch's own here too.
    """

    cu_seq_q: Tensor
    cu_seq_k: Tensor
    """Cumulative sequence lengths, int32 `[B + 1]`: the first row of each sample, and the end of the last."""
    max_q: int
    max_k: int
    """Bounds of the lengths."""

    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        y_SAK: Tensor = torch.ops.aten._flash_attention_forward(
            q_SAK,
            k_NAK,
            v_NAK,
            self.cu_seq_q,
            self.cu_seq_k,
            self.max_q,
            self.max_k,
            dropout_p=0.0,
            is_causal=False,
            return_debug_mask=False,
        )[0]
        return y_SAK


@dataclass(frozen=True)
class FlexAttention:
    """FlexAttention under a document mask; it skips blocks that are masked out as a whole."""

    mask: BlockMask
    flex_attention: Callable[..., Any]

    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        q_1ASK, k_1ANK, v_1ANK = (x.transpose(0, 1)[None] for x in (q_SAK, k_NAK, v_NAK))
        y_1ASK: Tensor = self.flex_attention(q_1ASK, k_1ANK, v_1ANK, block_mask=self.mask)
        return y_1ASK[0].transpose(0, 1)


def document_mask(query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device) -> BlockMask:
    """Return FlexAttention's mask that is true where query and key belong to the same sample."""
    sample_S, sample_N = (
        torch.arange(len(lengths), device=device).repeat_interleave(
            integer_tensor(lengths, device), output_size=sum(lengths)
        )
        for lengths in (query_lengths, key_lengths)
    )

    from torch.nn.attention.flex_attention import create_block_mask

    def same_sample(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sample_S[query] == sample_N[key]

    return create_block_mask(same_sample, B=None, H=None, Q_LEN=len(sample_S), KV_LEN=len(sample_N), device=device)


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Without compilation flex_attention holds all scores in memory.
    return torch.compile(flex_attention, dynamic=True)


def _cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    return integer_tensor([0, *itertools.accumulate(lengths)], device, torch.int32)


def _power_of_two_at_least(length: int) -> int:
    """Return the smallest power of two that is at least `length`, so that compiled code meets few distinct values."""
    return 1 << (length - 1).bit_length()
