"""Noise by counters: Philox by its authors' known answers, whatever the device and the batch, and normal."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from training import noise
from training.noise import MASK, WORDS, keyed_normals, philox_4x32

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK, MASK, MASK, MASK), (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Counter, key and words of `philox 4x32 10` in the file `kat_vectors` of Random123."""

Words = tuple[int, int, int, int]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_words_are_the_known_answers(counter: Words, key: tuple[int, int], words: Words) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox_4x32((c0, c1, c2, c3), key)) == words
    n0, n1, n2, n3 = (np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox_4x32((n0, n1, n2, n3), key)) == words


def test_tensors_give_the_numbers_of_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes with tensors, a CPU with arrays in chunks: rounding differs by a few units in the last place."""
    streams = torch.tensor([[0, 5, 7], [3, MASK, 1], [4, 0, MASK]])
    monkeypatch.setattr(noise, "CPU_CHUNK", 8)
    on_cpu = keyed_normals(streams, 50, 2**63 + 9)
    counters = torch.tensor([0, 1, 2, 0, *range(46)])
    _, low, high = streams[[0, 0, 0, 1, *[2] * 46]].unbind(1)
    words = philox_4x32((counters, torch.zeros_like(counters), low, high), (9, 2**31))
    on_gpu = torch.stack(noise._normals(torch, [word.to(torch.float32) for word in words]), dim=-1).flatten()
    torch.testing.assert_close(on_cpu, on_gpu, rtol=2e-6, atol=2e-6)


def test_a_stream_does_not_depend_on_the_others() -> None:
    together = keyed_normals(torch.tensor([[0, 1, 2], [10, 3, 4], [12, 1, 2]]), 22, 5)
    alone = keyed_normals(torch.tensor([[0, 1, 2]]), 10, 5)
    assert together[: 10 * WORDS].equal(alone)
    assert together[12 * WORDS :].equal(alone)
    assert not together[10 * WORDS : 12 * WORDS].equal(alone[: 2 * WORDS])
    assert not keyed_normals(torch.tensor([[0, 1, 2]]), 10, 6).equal(alone)


def test_noise_never_changes() -> None:
    """Runs resume with other versions of all packages, and must draw the same noise."""
    found = keyed_normals(torch.tensor([[0, 1, 2]]), 1, 3)
    torch.testing.assert_close(
        found,
        torch.tensor([-0.1348208338022232, 0.30162933468818665, 0.6725953817367554, -0.8729393482208252]),
        rtol=1e-6,
        atol=1e-6,
    )


def test_noise_is_normal_and_independent() -> None:
    """The Kolmogorov distance, moments and correlations of 80,000 numbers; bounds are four to five deviations."""
    drawn = keyed_normals(torch.tensor([[0, 1, 2], [10_000, 2, 2]]), 20_000, 3).numpy().astype(float)
    count = len(drawn)
    expected = np.array([NormalDist().cdf(value) for value in np.sort(drawn[::4])])
    assert np.abs(expected - (np.arange(len(expected)) + 0.5) / len(expected)).max() < 2.2 / len(expected) ** 0.5
    assert abs(drawn.mean()) < 4.5 / count**0.5
    assert abs((drawn**2).mean() - 1) < 4.5 * (2 / count) ** 0.5
    assert abs((drawn**4).mean() - 3) < 4.5 * (96 / count) ** 0.5
    for lag in (1, 2, 3, 4, 40_000):
        assert abs((drawn[lag:] * drawn[:-lag]).mean()) < 4.5 / (count - lag) ** 0.5
