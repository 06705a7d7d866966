"""Text encoder without weights: one token a word, each a pseudo-random unit-variance vector seeded by the word."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from captioning.encoder import TextEmbedding, TextEncoder, TextEncoderSettings

VERSION = 1
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
NULL_TOKEN = "\x00null"


class Hashing(TextEncoderSettings):
    """Feature hashing (Weinberger et al. 2009) with dense signs: nearly orthogonal vectors for different words.

    It knows no meaning and no word order, so it needs no weights and is the same on every machine. Each word's vector is
    `dim` signs drawn from SHAKE-128 of the lower-cased word; the null caption is a token of its own.
    """

    lightweight: ClassVar[bool] = True

    name: str = "hashing"
    dim: int = Field(128, ge=8, le=8192, multiple_of=8, description="Width D of the token embeddings.")
    max_tokens: int = Field(256, ge=1, description="Words beyond this many are cut off, and the row says so.")

    def identity(self) -> str:
        return f"hashing-v{VERSION}-{self.dim}-{self.max_tokens}"

    def open(self, device: str | None = None) -> TextEncoder:
        """It computes with numpy, whatever the device."""
        return HashingEncoder(self)


class HashingEncoder(TextEncoder):
    """See `Hashing`."""

    def __init__(self, settings: Hashing) -> None:
        self.dim = settings.dim
        self.identity = settings.identity()
        self._max_tokens = settings.max_tokens

    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        return [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> TextEmbedding:
        words = WORD.findall(caption.lower()) or [NULL_TOKEN]
        kept = words[: self._max_tokens]
        return TextEmbedding(np.stack([word_vector(word, self.dim) for word in kept]), truncated=len(words) > len(kept))


@lru_cache(maxsize=65536)
def word_vector(word: str, dim: int) -> NDArray[np.float32]:
    """`[dim]` of +1 and -1."""
    bits = np.frombuffer(hashlib.shake_128(word.encode()).digest(dim // 8), np.uint8)
    return (np.unpackbits(bits).astype(np.float32) * 2 - 1).astype(np.float32)
