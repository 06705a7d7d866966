"""Encoder `hashing`: one token per word, embedded as a pseudo-random vector of unit variance that the word seeds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
from pydantic import Field

from captioning.encoder import TextEmbedding, TextEncoder, TextEncoderSettings
from cluster.arrays import Float32Array

VERSION = 1
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
NULL_TOKEN = "\x00null"
"""Token of captions without words. It differs from every word because words contain no NUL."""


class Hashing(TextEncoderSettings):
    """Settings of feature hashing (Weinberger et al. 2009) with dense signs; embeddings of words are near-orthogonal.

    The encoder does not represent meaning. It needs no weights and is the same on every machine. The embedding of a
    word is `dim` signs from the SHAKE-128 hash of the lower-cased word; the null caption is one token.

    Embeddings do not depend on the other words, unless `word_pairs` adds the word before, as a bag of bigrams does
    (Joulin et al. 2016, "Bag of tricks for efficient text classification"): that of word w after u is
    (v(w) + reversed v(u)) / sqrt(2).
    """

    lightweight: ClassVar[bool] = True

    name: str = "hashing"
    dim: int = Field(128, ge=8, le=8192, multiple_of=8, description="Width D of the token embeddings.")
    max_tokens: int = Field(
        256, ge=1, description="Words per caption; a longer caption is cut off, and its row is marked as truncated."
    )

    word_pairs: bool = Field(
        False,
        description="Whether a word is embedded together with the word before it. Then `a red circle and a blue "
        "square` differs from `a blue circle and a red square` in its words, not in their places alone.",
    )

    def identity(self) -> str:
        pairs = "-pairs" if self.word_pairs else ""
        return f"hashing-v{VERSION}-{self.dim}-{self.max_tokens}{pairs}"

    def open(self, device: str | None = None) -> TextEncoder:
        """Return the encoder, which computes with numpy on every device."""
        return HashingEncoder(self)


class HashingEncoder(TextEncoder):
    """A text encoder with `Hashing` settings."""

    def __init__(self, settings: Hashing) -> None:
        self.dim = settings.dim
        self.identity = settings.identity()
        self._max_tokens, self._word_pairs = settings.max_tokens, settings.word_pairs

    def encode(self, captions: Sequence[str]) -> list[TextEmbedding]:
        return [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> TextEmbedding:
        words = WORD.findall(caption.lower()) or [NULL_TOKEN]
        kept = words[: self._max_tokens]
        vectors_ND = np.stack([word_vector(word, self.dim) for word in kept])
        if self._word_pairs:
            # In reverse, so that a word and the one before it can be told apart.
            vectors_ND[1:] = (vectors_ND[1:] + vectors_ND[:-1, ::-1]) / np.float32(2**0.5)
        return TextEmbedding(vectors_ND, truncated=len(words) > len(kept))


@lru_cache(maxsize=65536)
def word_vector(word: str, dim: int) -> Float32Array:
    """Return the embedding `[dim]` of a word, whose values are +1 and -1."""
    bits = np.frombuffer(hashlib.shake_128(word.encode()).digest(dim // 8), np.uint8)
    return (np.unpackbits(bits).astype(np.float32) * 2 - 1).astype(np.float32)
