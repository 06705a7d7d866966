"""Text encoders that make batches on the CPU."""

from __future__ import annotations

from captioning.encoder import TextEncoder
from captioning.encoders._batched import BatchedEncoder


def in_batches(encoder: TextEncoder, batch_tokens: int = 16384) -> BatchedEncoder:
    """Let an encoder on the CPU embed captions in batches of at most `batch_tokens` tokens, as on a GPU."""
    assert isinstance(encoder, BatchedEncoder)
    encoder._batch_tokens = batch_tokens
    return encoder
