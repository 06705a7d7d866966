"""Context parallelism: the ranks of a group share a pack's tokens, a slice each. Resources nothing but torch.

All of them are called with the same packs. What is done token by token, each does to its slice. For attention they trade tokens for heads:
each gets the whole samples for its share of the heads, and gives them back (DeepSpeed-Ulysses, Jacobs et al. 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.models._attention import Attend

# Shape suffixes: S tokens (of the whole pack, or of the slice), N text tokens of the whole pack, A heads, K a head's width, D model width.


@dataclass(frozen=True)
class Slice:
    """A rank's slice of a pack's tokens. Slices follow each other in order of rank; their sizes differ by one token at most, and may be 0."""

    group: dist.ProcessGroup
    rank: int
    lengths: tuple[int, ...]
    """Tokens of each of the pack's samples."""
    sizes: tuple[int, ...]
    """Tokens of each rank's slice."""

    @classmethod
    def of(cls, group: dist.ProcessGroup, lengths: Sequence[int]) -> Slice:
        """The slice of this rank, of a pack whose samples have so many tokens."""
        starts = [sum(lengths) * rank // group.size() for rank in range(group.size() + 1)]
        return cls(
            group, group.rank(), tuple(lengths), tuple(stop - start for start, stop in itertools.pairwise(starts))
        )

    @property
    def size(self) -> int:
        """Tokens of this slice."""
        return self.sizes[self.rank]

    @property
    def start(self) -> int:
        """Tokens of the pack before it."""
        return sum(self.sizes[: self.rank])

    def cut(self, x_S: Tensor) -> Tensor:
        """What belongs to the slice of a tensor `[S, ...]` of the whole pack; a copy, so that the whole need not be kept."""
        return x_S[self.start : self.start + self.size].clone()

    def texts(self, text_ND: Tensor, text_lengths: Sequence[int]) -> tuple[Tensor, list[int], list[int]]:
        """The text tokens of the samples that the slice has a part of, and of each of them the slice's tokens and the text's.

        An empty slice has the first sample's text and none of its tokens, since ZeRO-3 needs all ranks to call all layers.
        """
        start, stop = self.start, self.start + self.size
        ends = itertools.accumulate(self.lengths)
        own = [min(end, stop) - max(end - length, start) for end, length in zip(ends, self.lengths, strict=True)]
        places = [place for place, count in enumerate(own) if count > 0]
        if not places:
            return text_ND[: text_lengths[0]], [0], [text_lengths[0]]
        seen = slice(places[0], places[-1] + 1)
        first = sum(text_lengths[: seen.start])
        return text_ND[first : first + sum(text_lengths[seen])], own[seen], list(text_lengths[seen])

    def joined(self, x_SD: Tensor) -> Tensor:
        """The slices of all ranks after one another, on each of them.

        On the way back a rank gets the sum of what all ranks ask of its slice. So where all compute one loss, each has to count it as 1 / ranks.
        """
        n_ranks = len(self.sizes)
        return exchange(x_SD.repeat(n_ranks, 1), self.group, (self.size,) * n_ranks, self.sizes)


@dataclass(frozen=True)
class Traded:
    """Attention of whole samples for slices of them: tokens are traded for heads before it, and back after it."""

    attend: Attend
    """For the whole pack; it gets a share of the heads."""
    own: Slice

    # Left out of compiled graphs: sizes differ from pack to pack and from rank to rank, and each would be compiled anew.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, q_SAK: Tensor, k_SAK: Tensor, v_SAK: Tensor) -> Tensor:
        own, n_ranks = self.own, len(self.own.sizes)
        alike = (own.size,) * n_ranks
        # One after the other what each rank gets, [ranks, S, 3, A / ranks, K]: then what comes is in order, the pack's tokens first.
        by_rank = [torch.unflatten(x_SAK, 1, (n_ranks, -1)).transpose(0, 1) for x_SAK in (q_SAK, k_SAK, v_SAK)]
        q, k, v = exchange(torch.stack(by_rank, dim=2).flatten(0, 1), own.group, alike, own.sizes).unbind(1)
        y = exchange(self.attend(q, k, v), own.group, own.sizes, alike)
        return torch.unflatten(y, 0, (n_ranks, own.size)).transpose(0, 1).flatten(1, 2)


def exchange(x_S: Tensor, group: dist.ProcessGroup, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """Rows of all ranks, one rank's after the other's: `x_S` has `send[r]` rows for rank r, and `receive[r]` come from it. Gradients go back."""
    made: Tensor = _Exchange.apply(x_S, group, tuple(send), tuple(receive))  # type: ignore[no-untyped-call]
    return made


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_S: Tensor, group: dist.ProcessGroup, send: tuple[int, ...], receive: tuple[int, ...]
    ) -> Tensor:
        ctx.group, ctx.send, ctx.receive = group, send, receive
        return _all_to_all(x_S, group, send, receive)

    @staticmethod
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _all_to_all(grad_S, ctx.group, ctx.receive, ctx.send), None, None, None


def _all_to_all(x_S: Tensor, group: dist.ProcessGroup, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
    made_S = x_S.new_empty((sum(receive), *x_S.shape[1:]))
    dist.all_to_all_single(made_S, x_S.contiguous(), list(receive), list(send), group=group)
    return made_S
