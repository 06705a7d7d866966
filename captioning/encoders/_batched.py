"""The base of encoders with a network: captions of similar length are encoded in one batch, and padding is removed.

Shape legend: B captions of a batch, L tokens of the longest caption, D width of a token embedding, P width of the
pooled embedding.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from captioning.encoder import TextEmbedding, TextEncoder, TextEncoderSettings
from captioning.engine import EngineError
from cluster.arrays import Float32Array
from cluster.resources import Resources
from cluster.telemetry import log

if TYPE_CHECKING:
    from torch import Tensor

MAX_PADDED_SHARE = 0.1
"""Upper limit of the share of padding in the tokens of every batch."""


class BatchedSettings(TextEncoderSettings):
    """Settings of an encoder with a network."""

    gpus: float = Field(0.0, ge=0, description="GPUs per embedding worker; may be a fraction; 0 runs on the CPU.")
    batch_tokens: int = Field(
        16384,
        ge=1,
        description="Largest number of tokens per batch on a GPU, padding included; halved whenever memory runs out. "
        "On the CPU a batch is one caption.",
    )

    def resources(self) -> Resources:
        return Resources(gpus=self.gpus)

    def device_kind(self) -> str:
        """Return `gpu` or `cpu` for the identity, because GPU and CPU round differently."""
        return "gpu" if self.gpus else "cpu"

    def device(self, wanted: str | None) -> str:
        """Return the torch device to load on: the wanted one, or by default the one that `gpus` implies.

        Raises `EngineError` if it is a GPU and torch sees none.
        """
        import torch

        device = wanted or ("cuda" if self.gpus else "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise EngineError(
                f"text encoder {self.name}: gpus is {self.gpus:g}, but torch sees no GPU here; set gpus to 0"
            )
        return device


@dataclass(frozen=True)
class Tokens:
    """Token ids of a caption, special tokens included."""

    ids: Sequence[int]
    truncated: bool


class BatchedEncoder(TextEncoder):
    """An encoder with a network on one device."""

    def __init__(self, settings: BatchedSettings, device: str, pad_id: int) -> None:
        self.identity = settings.identity()
        self._name = settings.name
        self._device = device
        self._pad_id = pad_id
        # On the CPU captions go through the network one at a time, so that embeddings do not depend on the others of a
        # batch. T5 of 512 or 1024 numbers is no slower: 52 ms per caption of 50 tokens, and 53 in batches of 16.
        self._batch_tokens = settings.batch_tokens if device != "cpu" else 1

    @abc.abstractmethod
    def tokenize(self, captions: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each caption, cut off at the token limit."""

    @abc.abstractmethod
    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return token embeddings `[B, L, D]` and pooled embeddings `[B, P]`, or None if the network has none.

        Values at positions beyond the length of a caption are ignored.
        """

    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        tokens = self.tokenize(captions)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids), reverse=True)
        embeddings: dict[int, TextEmbedding] = {}
        start = 0
        while start < len(order):
            count = next_batch_size([len(tokens[i].ids) for i in order[start:]], self._batch_tokens)
            batch = order[start : start + count]
            embeddings |= zip(batch, self._embed([tokens[i] for i in batch]), strict=True)
            start += count
        return [embeddings[i] for i in range(len(tokens))]

    def _embed(self, batch: Sequence[Tokens]) -> list[TextEmbedding]:
        """Embed captions, of which the first is the longest.

        If memory runs out, embed them in two halves, and lower `batch_tokens` for all later batches.
        """
        import torch

        lengths = [len(tokens.ids) for tokens in batch]
        try:
            tokens_BLD, pooled_BP = self._forward_arrays(batch, lengths)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise EngineError(
                    f"text encoder {self._name}: out of memory on {self._device} with one caption of {lengths[0]} "
                    "tokens; set a lower max_tokens or dtype bfloat16, raise gpus if it is a fraction, or set gpus to 0"
                ) from error
        else:
            self.padding_tokens += len(batch) * lengths[0] - sum(lengths)
            rows = zip(batch, tokens_BLD, pooled_BP if pooled_BP is not None else [None] * len(batch), strict=True)
            return [
                TextEmbedding(tokens_LD[: len(tokens.ids)].copy(), tokens.truncated, pooled_P)
                for tokens, tokens_LD, pooled_P in rows
            ]
        # The tensors of the failed batch are freed only here, after the except block: the error refers to them.
        torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        self._batch_tokens = max(lengths[0], min(self._batch_tokens, half * lengths[0]))
        log.warning(
            f"text encoder {self._name}: out of memory with a batch of {len(batch)} captions; "
            f"batch_tokens is now {self._batch_tokens}"
        )
        return self._embed(batch[:half]) + self._embed(batch[half:])

    def _forward_arrays(
        self, batch: Sequence[Tokens], lengths: Sequence[int]
    ) -> tuple[Float32Array, Float32Array | None]:
        """Run the network on a batch; return `[B, L, D]` and `[B, P]`, or None for the latter."""
        import torch

        padded = [[*tokens.ids, *[self._pad_id] * (lengths[0] - len(tokens.ids))] for tokens in batch]
        with torch.inference_mode():
            tokens_BLD, pooled_BP = self.forward(
                torch.tensor(padded, device=self._device), torch.tensor(lengths, device=self._device)
            )
            return tokens_BLD.float().cpu().numpy(), None if pooled_BP is None else pooled_BP.float().cpu().numpy()


def next_batch_size(lengths: Sequence[int], batch_tokens: int) -> int:
    """Return how many captions the next batch takes, from their lengths in descending order; at least one.

    The batch keeps padding below `MAX_PADDED_SHARE`, and has at most `batch_tokens` tokens, padding included.
    """
    total = 0
    for count, length in enumerate(lengths):
        total += length
        computed = (count + 1) * lengths[0]
        if count and (computed > batch_tokens or computed - total >= MAX_PADDED_SHARE * computed):
            return count
    return len(lengths)
