"""Context parallelism (DeepSpeed-Ulysses, Jacobs et al. 2023): the ranks of a group share the tokens of each pack.

Every rank of the group is called with the same packs. Layers that work on single tokens run on the rank's own slice of
the pack. For attention the ranks exchange tokens for heads: each computes a share of the heads for all tokens, and then
sends the results back.

This module imports nothing but torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.models._attention import AttentionKernel

# Shape suffixes: S tokens (of the whole pack, or of a rank's slice), N text tokens of the whole pack, A heads, K width
# of a head, D model width.


@dataclass(frozen=True)
class TokenSlice:
    """One rank's slice of a pack's tokens.

    Slices are contiguous and in rank order. Their sizes differ by at most one token, so that some are empty in a tiny
    pack.
    """

    group: dist.ProcessGroup
    rank: int
    sample_tokens: tuple[int, ...]
    """Tokens of each sample of the pack."""
    rank_tokens: tuple[int, ...]
    """Tokens in each rank's slice."""

    @classmethod
    def of_this_rank(cls, group: dist.ProcessGroup, sample_tokens: Sequence[int]) -> TokenSlice:
        """Return this rank's slice of a pack whose samples have these numbers of tokens."""
        bounds = [sum(sample_tokens) * rank // group.size() for rank in range(group.size() + 1)]
        rank_tokens = tuple(stop - start for start, stop in itertools.pairwise(bounds))
        return cls(group, group.rank(), tuple(sample_tokens), rank_tokens)

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the slice."""
        return self.rank_tokens[self.rank]

    @property
    def start(self) -> int:
        """Index of the slice's first token in the pack."""
        return sum(self.rank_tokens[: self.rank])

    def take(self, x_S: Tensor) -> Tensor:
        """Return a copy of the slice's rows of a tensor `[S, ...]`, so that the whole pack's tensor can be freed."""
        return x_S[self.start : self.start + self.n_tokens].clone()

    def take_texts(self, text_ND: Tensor, text_lengths: Sequence[int]) -> tuple[Tensor, list[int], list[int]]:
        """Return the text tokens of the samples in the slice, and for each of these samples its tokens in the slice and
        its text tokens.

        An empty slice gets the first sample's text with 0 tokens, because ZeRO-3 needs all ranks to call all layers.
        """
        start, stop = self.start, self.start + self.n_tokens
        ends = itertools.accumulate(self.sample_tokens)
        tokens_here = [
            min(end, stop) - max(end - length, start) for end, length in zip(ends, self.sample_tokens, strict=True)
        ]
        samples_here = [sample for sample, count in enumerate(tokens_here) if count > 0]
        if not samples_here:
            return text_ND[: text_lengths[0]], [0], [text_lengths[0]]
        here = slice(samples_here[0], samples_here[-1] + 1)
        first_text = sum(text_lengths[: here.start])
        n_text = sum(text_lengths[here])
        return text_ND[first_text : first_text + n_text], tokens_here[here], list(text_lengths[here])

    def all_gather(self, x_SD: Tensor) -> Tensor:
        """Return the slices of all ranks, concatenated, on every rank.

        In the backward pass a rank gets the sum of all ranks' gradients for its slice. So if all ranks compute the same
        loss, each must weight it by 1 / ranks.
        """
        n_ranks = len(self.rank_tokens)
        return all_to_all(x_SD.repeat(n_ranks, 1), self.group, (self.n_tokens,) * n_ranks, self.rank_tokens)


@dataclass(frozen=True)
class UlyssesAttention:
    """Attention of whole samples for ranks that hold slices of the tokens: it exchanges tokens for heads, and back."""

    kernel: AttentionKernel
    """Kernel for the whole pack; it is called with a share of the heads."""
    token_slice: TokenSlice

    # Excluded from compiled graphs (`compiled_block`): sizes differ by pack and by rank, and each combination would be
    # compiled anew.
    def __call__(self, q_SAK: Tensor, k_SAK: Tensor, v_SAK: Tensor) -> Tensor:
        group, rank_tokens = self.token_slice.group, self.token_slice.rank_tokens
        n_ranks, n_tokens = len(rank_tokens), self.token_slice.n_tokens
        slice_sizes = (n_tokens,) * n_ranks
        # Rows for each rank in turn, [ranks, S, 3, A / ranks, K]: the received rows are then in the order of the pack's
        # tokens.
        by_rank = [torch.unflatten(x_SAK, 1, (n_ranks, -1)).transpose(0, 1) for x_SAK in (q_SAK, k_SAK, v_SAK)]
        q, k, v = all_to_all(torch.stack(by_rank, dim=2).flatten(0, 1), group, slice_sizes, rank_tokens).unbind(1)
        y = all_to_all(self.kernel(q, k, v), group, rank_tokens, slice_sizes)
        return torch.unflatten(y, 0, (n_ranks, n_tokens)).transpose(0, 1).flatten(1, 2)


def all_to_all(x_S: Tensor, group: dist.ProcessGroup, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """Send `send[r]` rows of `x_S` to each rank r, and return the `receive[r]` rows from each; both in rank order.

    The backward pass sends the rows' gradients back.
    """
    received: Tensor = _AllToAll.apply(x_S, group, tuple(send), tuple(receive))  # type: ignore[no-untyped-call]
    return received


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_S: Tensor, group: dist.ProcessGroup, send: tuple[int, ...], receive: tuple[int, ...]
    ) -> Tensor:
        ctx.group, ctx.send, ctx.receive = group, send, receive
        return _exchange_rows(x_S, group, send, receive)

    @staticmethod
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _exchange_rows(grad_S, ctx.group, ctx.receive, ctx.send), None, None, None


def _exchange_rows(x_S: Tensor, group: dist.ProcessGroup, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
    received_S = x_S.new_empty((sum(receive), *x_S.shape[1:]))
    dist.all_to_all_single(received_S, x_S.contiguous(), list(receive), list(send), group=group)
    return received_S
