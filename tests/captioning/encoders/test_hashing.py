"""Encoder hashing: its embeddings are known in every process, nearly orthogonal, and truncated as recorded."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.encoder import NULL_CAPTION, text_key
from captioning.encoders.hashing import Hashing, word_vector


def test_one_token_per_word_in_any_case_and_punctuation() -> None:
    encoder = Hashing().open()
    a, b = encoder.encode(["A red circle, moving.", "a RED circle moving"])
    assert a.tokens.shape == (4, 128)
    assert a.tokens.dtype == np.float32
    np.testing.assert_array_equal(a.tokens, b.tokens)


@pytest.mark.slow
def test_word_vectors_are_equal_in_every_process() -> None:
    code = "from captioning.encoders.hashing import word_vector; print(word_vector('red', 64).astype(int).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert str(word_vector("red", 64).astype(int).tolist()) == other.strip()


@pytest.mark.slow
@given(st.sets(st.text("abcdefgh", min_size=1, max_size=8), min_size=2, max_size=20))
def test_different_words_are_nearly_orthogonal(words: set[str]) -> None:
    vectors = np.stack([word_vector(word, 512) for word in sorted(words)])
    cosine = vectors @ vectors.T / 512
    # The cosine of two random sign vectors has a standard deviation of 1 / sqrt(512) = 0.044; 0.31 is 7 of them.
    assert np.abs(cosine - np.eye(len(words))).max() < 0.31


def test_null_caption_has_an_embedding_of_its_own() -> None:
    encoder = Hashing().open()
    null, punctuation, word = encoder.encode([NULL_CAPTION, "...", "null"])
    assert null.tokens.shape == (1, 128)
    np.testing.assert_array_equal(null.tokens, punctuation.tokens)
    assert not np.array_equal(null.tokens, word.tokens)


def test_word_pairs_tell_which_colour_a_thing_has() -> None:
    def embedded(caption: str, word_pairs: bool) -> set[bytes]:
        (embedding,) = Hashing(word_pairs=word_pairs).open().encode([caption])
        return {token.tobytes() for token in embedding.tokens}

    first, second = "a red circle and a blue square", "a blue circle and a red square"
    assert embedded(first, word_pairs=False) == embedded(second, word_pairs=False)
    # Those of "red circle" and "blue square".
    assert len(embedded(first, word_pairs=True) - embedded(second, word_pairs=True)) == 2


def test_word_pairs_are_a_sum_of_both_words() -> None:
    encoder = Hashing(word_pairs=True).open()
    (embedding,) = encoder.encode(["red circle"])
    red, circle = (word_vector(word, 128) for word in ("red", "circle"))
    np.testing.assert_array_equal(embedding.tokens[0], red)
    np.testing.assert_allclose(embedding.tokens[1], (circle + red[::-1]) / 2**0.5, rtol=1e-6)
    assert embedding.tokens.dtype == np.float32
    assert Hashing(word_pairs=True).identity() == f"{Hashing().identity()}-pairs"


def test_truncation_is_recorded() -> None:
    (long,) = Hashing(max_tokens=3).open().encode(["one two three four"])
    assert long.truncated
    assert len(long.tokens) == 3


def test_text_keys_differ_by_caption_and_encoder() -> None:
    keys = {text_key(caption, Hashing(dim=dim).identity()) for caption in ("a", "b") for dim in (64, 128)}
    assert len(keys) == 4
