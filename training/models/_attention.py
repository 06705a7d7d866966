"""Attention within the samples of a packed sequence, by whichever kernel is there. All kernels give the same numbers but for rounding.

A pack's samples stand one after the other. Queries of sample i see the keys of sample i and no others, without padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # it came with torch 2.10
    varlen_attn = None  # type: ignore[assignment]

# Shape suffixes: S queries and N keys of the whole pack, A heads, K a head's width, B samples.

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries `[S, A, K]`, keys and values `[N, A, K]` to `[S, A, K]`."""

KERNELS = ("sdpa", "varlen", "flex")


def attend(
    kernel: str, queries: Sequence[int], keys: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Attend:
    """Attention for samples with that many queries and keys each; `kernel` is `auto` or one of `KERNELS`.

    Raises `ValueError` for a kernel that cannot run on this device or in this precision.
    """
    assert len(queries) == len(keys), (queries, keys)
    runs = [(length, len(list(group))) for length, group in itertools.groupby(zip(queries, keys, strict=True))]
    can_varlen = varlen_attn is not None and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if kernel == "auto":
        kernel = "varlen" if can_varlen and len(runs) > 1 else "sdpa"
    if kernel == "sdpa":
        return Even(len(queries)) if len(runs) == 1 else Runs(tuple((count, *length) for length, count in runs))
    if kernel == "varlen":
        if not can_varlen:
            raise ValueError(
                f"attention varlen needs a GPU, bf16 and torch 2.10 or newer; this is {device.type}, {dtype}; take auto or sdpa"
            )
        return Varlen(_starts(queries, device), _starts(keys, device), _at_most(queries), _at_most(keys))
    assert kernel == "flex", kernel
    if device.type != "cuda":
        raise ValueError(f"attention flex needs a GPU to train, and this is {device.type}; take auto or sdpa")
    return Flex(document_mask(queries, keys, device), _compiled_flex())


@dataclass(frozen=True)
class Even:
    """Scaled dot-product attention of samples of one length, which are a batch without a copy."""

    n_samples: int

    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        q_BASK, k_BANK, v_BANK = (
            torch.unflatten(x, 0, (self.n_samples, -1)).transpose(1, 2) for x in (q_SAK, k_NAK, v_NAK)
        )
        return F.scaled_dot_product_attention(q_BASK, k_BANK, v_BANK).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Runs:
    """Scaled dot-product attention, one call for each run of samples of one length."""

    runs: tuple[tuple[int, int, int], ...]
    """Samples in a row, and queries and keys of each."""

    # Left out of compiled graphs: lengths differ from pack to pack, and each would be compiled anew.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        queries, keys = ([count * lengths[kind] for count, *lengths in self.runs] for kind in (0, 1))
        parts = zip(
            self.runs, torch.split(q_SAK, queries), torch.split(k_NAK, keys), torch.split(v_NAK, keys), strict=True
        )
        return torch.cat([Even(count)(q, k, v) for (count, _, _), q, k, v in parts])


@dataclass(frozen=True)
class Varlen:
    """FlashAttention's kernel for sequences of different lengths, in one call."""

    query_starts: Tensor
    key_starts: Tensor
    """int32 `[B + 1]`: where each sample begins, and the end."""
    most_queries: int
    most_keys: int

    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        assert varlen_attn is not None
        y_SAK = varlen_attn(q_SAK, k_NAK, v_NAK, self.query_starts, self.key_starts, self.most_queries, self.most_keys)
        assert isinstance(y_SAK, Tensor)
        return y_SAK


@dataclass(frozen=True)
class Flex:
    """FlexAttention under a mask that is true within a sample; it skips blocks that are all false."""

    mask: BlockMask
    kernel: Callable[..., Any]

    def __call__(self, q_SAK: Tensor, k_NAK: Tensor, v_NAK: Tensor) -> Tensor:
        q_1ASK, k_1ANK, v_1ANK = (x.transpose(0, 1)[None] for x in (q_SAK, k_NAK, v_NAK))
        y_1ASK: Tensor = self.kernel(q_1ASK, k_1ANK, v_1ANK, block_mask=self.mask)
        return y_1ASK[0].transpose(0, 1)


def document_mask(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> BlockMask:
    """The mask of FlexAttention for such a pack."""
    sample_S, sample_N = (
        torch.arange(len(sizes), device=device).repeat_interleave(
            torch.tensor(sizes, device=device), output_size=sum(sizes)
        )
        for sizes in (queries, keys)
    )

    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sample_S[query] == sample_N[key]

    return create_block_mask(same, B=None, H=None, Q_LEN=len(sample_S), KV_LEN=len(sample_N), device=device)


@cache
def _compiled_flex() -> Callable[..., Any]:
    # Uncompiled it holds all scores in memory.
    return torch.compile(flex_attention, dynamic=True)


def _starts(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32, device=device)


def _at_most(sizes: Sequence[int]) -> int:
    """A bound that takes few values, because compiled code is made anew for each."""
    return 1 << (max(sizes) - 1).bit_length()
