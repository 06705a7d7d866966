"""What encoders with a network share: captions of about one length go through it together, and each comes back without padding.

Shape legend: B captions of a batch, L tokens of the longest of them, D width of a token, P width of the pooled vector.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from captioning.encoder import TextEmbedding, TextEncoder, TextEncoderSettings
from captioning.engine import EngineError
from cluster.resources import Resources
from cluster.telemetry import log

if TYPE_CHECKING:
    from torch import Tensor

MAX_PADDED_SHARE = 0.1
"""Padding is below this share of the tokens of every batch, and so of all."""


class BatchedSettings(TextEncoderSettings):
    """Settings of an encoder that has a network."""

    gpus: float = Field(
        0.0, ge=0, description="GPUs each embedding worker holds, also a fraction; 0 computes on the CPU."
    )
    batch_tokens: int = Field(
        16384,
        ge=1,
        description="Tokens that go through the network at once, padding included; halved where memory is short.",
    )

    def resources(self) -> Resources:
        return Resources(gpus=self.gpus)

    def place(self) -> str:
        """GPU or CPU, which round otherwise: part of the identity."""
        return "gpu" if self.gpus else "cpu"

    def device(self, wanted: str | None) -> str:
        """The device to open on. Raises `EngineError` for a GPU where there is none."""
        import torch

        device = wanted or ("cuda" if self.gpus else "cpu")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise EngineError(
                f"text encoder {self.name}: gpus is {self.gpus:g}, but torch sees no GPU here; set gpus to 0"
            )
        return device


@dataclass(frozen=True)
class Tokens:
    """A caption as the network takes it, special tokens included."""

    ids: Sequence[int]
    truncated: bool


class BatchedEncoder(TextEncoder):
    """An encoder around a network on one device."""

    def __init__(self, settings: BatchedSettings, device: str, pad_id: int) -> None:
        self.identity = settings.identity()
        self._name = settings.name
        self._device = device
        self._pad_id = pad_id
        self._batch_tokens = settings.batch_tokens

    @abc.abstractmethod
    def tokenize(self, captions: Sequence[str]) -> list[Tokens]: ...

    @abc.abstractmethod
    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[B, L, D]` and, where there is one, the pooled `[B, P]`; what stands past a caption's length is not looked at."""

    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        tokens = self.tokenize(captions)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids), reverse=True)
        embeddings: dict[int, TextEmbedding] = {}
        start = 0
        while start < len(order):
            count = fitting([len(tokens[i].ids) for i in order[start:]], self._batch_tokens)
            batch = order[start : start + count]
            embeddings |= zip(batch, self._embed([tokens[i] for i in batch]), strict=True)
            start += count
        return [embeddings[i] for i in range(len(tokens))]

    def _embed(self, batch: Sequence[Tokens]) -> list[TextEmbedding]:
        """Embeds texts, the longest first; in two halves, and with less at once from then on, where memory is short."""
        import torch

        lengths = [len(text.ids) for text in batch]
        try:
            tokens_BLD, pooled_BP = self._through(batch, lengths)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise EngineError(
                    f"text encoder {self._name}: no memory on {self._device} for one caption of {lengths[0]} tokens; "
                    "set a lower max_tokens or dtype bfloat16, give a worker more of a GPU (gpus), or set gpus to 0"
                ) from error
        else:
            self.padding_tokens += len(batch) * lengths[0] - sum(lengths)
            rows = zip(batch, tokens_BLD, pooled_BP if pooled_BP is not None else [None] * len(batch), strict=True)
            return [
                TextEmbedding(tokens_LD[: len(text.ids)].copy(), text.truncated, pooled_P)
                for text, tokens_LD, pooled_P in rows
            ]
        # Here the failed try's tensors are gone, which the error had held.
        torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        self._batch_tokens = max(lengths[0], min(self._batch_tokens, half * lengths[0]))
        log.warning(
            f"text encoder {self._name}: out of memory with {len(batch)} captions at once; batch_tokens is {self._batch_tokens} from here on"
        )
        return self._embed(batch[:half]) + self._embed(batch[half:])

    def _through(self, batch: Sequence[Tokens], lengths: list[int]) -> tuple[Any, Any]:
        """float32 arrays `[B, L, D]` and `[B, P]`, or None, of a batch."""
        import torch

        padded = [[*text.ids, *[self._pad_id] * (lengths[0] - len(text.ids))] for text in batch]
        with torch.inference_mode():
            tokens_BLD, pooled_BP = self.forward(
                torch.tensor(padded, device=self._device), torch.tensor(lengths, device=self._device)
            )
            return tokens_BLD.float().cpu().numpy(), None if pooled_BP is None else pooled_BP.float().cpu().numpy()


def fitting(lengths: Sequence[int], batch_tokens: int) -> int:
    """How many of these texts, the longest first, make the next batch.

    As many as keep padding under `MAX_PADDED_SHARE` and all of it, padding included, within `batch_tokens`; at least one.
    """
    total = 0
    for count, length in enumerate(lengths):
        total += length
        computed = (count + 1) * lengths[0]
        if count and (computed > batch_tokens or computed - total >= MAX_PADDED_SHARE * computed):
            return count
    return len(lengths)
