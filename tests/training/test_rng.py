"""Keyed random numbers: the same on every machine and version, uniform, and independent for other samples and keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import digest
from training.rng import keyed_uniforms, uid_hashes

UIDS = [f"clip-{number}" for number in range(20_000)]
MASK = 2**64 - 1


def splitmix64(z: int) -> int:
    """Return the output of SplitMix64 as its authors print it, in Python's integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.slow
@given(st.lists(st.integers(0, MASK), max_size=20), st.integers(0, MASK), st.text(max_size=4))
def test_numbers_are_those_of_splitmix64(numbers: list[int], seed: int, purpose: str) -> None:
    keys = int(digest(str(seed), purpose, size_bytes=8), 16)
    assert keyed_uniforms(np.array(numbers, np.uint64), seed, purpose).tolist() == [
        (splitmix64(number ^ keys) >> 11) / 2**53 for number in numbers
    ]


def test_numbers_never_change() -> None:
    """Runs resume with other versions of all packages, and must draw the same numbers."""
    assert uid_hashes(["clip", "ü"]).tolist() == [0xD333F7DB0F478AE0, 0x372F39C1F59DF155]
    assert keyed_uniforms(uid_hashes(["clip", "ü"]), 0, 1, "given").tolist() == [
        0.7506207982572237,
        0.14414928950539663,
    ]


def test_numbers_are_uniform_and_independent() -> None:
    """The Kolmogorov distance and the correlations of 20,000 samples between epochs, seeds and keys.

    The bounds are four to five standard deviations.
    """
    numbers = uid_hashes(UIDS)
    drawn = np.array(
        [
            keyed_uniforms(numbers, *keys)
            for keys in ((0, 0, "given"), (0, 1, "given"), (1, 0, "given"), (0, 0, "other"), (0, "0given"))
        ]
    )
    deviations = np.sort(drawn, axis=1) - (np.arange(len(UIDS)) + 0.5) / len(UIDS)
    assert np.abs(deviations).max() < 2.2 / len(UIDS) ** 0.5
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 4.5 / len(UIDS) ** 0.5
    assert np.abs([np.corrcoef(one[:-1], one[1:])[0, 1] for one in drawn]).max() < 4.5 / len(UIDS) ** 0.5
