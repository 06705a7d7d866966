"""Alignment of two clips, against a search of all offsets, starts and ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.arrays import UInt64Array
from pipelines.duplicates.alignment import (
    MIN_STEADY_BITS,
    NEUTRAL_DISTANCE,
    align,
    best_run,
    frame_distances,
    may_align,
)
from pipelines.video.phash import is_informative, mirrored
from tests.support.clip_rows import noisy, unrelated_hashes


def bits(value: int) -> list[int]:
    return [value >> i & 1 for i in range(64)]


def reference_steady_distance(a: int, b: int, neighbour: int) -> float:
    steady = [i for i in range(64) if bits(b)[i] == bits(neighbour)[i]]
    counted = steady if len(steady) >= MIN_STEADY_BITS else list(range(64))
    return sum(bits(a)[i] != bits(b)[i] for i in counted) * 64 / len(counted)


def reference_distance(a: UInt64Array, b: UInt64Array, i: int, j: int) -> float:
    x, y = int(a[i]), int(b[j])
    forward = reference_steady_distance(x, y, int(b[min(j + 1, len(b) - 1)]))
    backward = reference_steady_distance(y, x, int(a[max(i - 1, 0)]))
    p, q = x.bit_count() / 64, y.bit_count() / 64
    expected = 64 * (p * (1 - q) + q * (1 - p))
    return (forward + backward) / 2 * max(1.0, 32 / max(expected, 1.0))


def reference_score(a: UInt64Array, b: UInt64Array) -> int:
    """Return the greatest sum over all offsets, starts and ends, in 64ths."""
    best = 0
    for offset in range(-len(a) + 1, len(b)):
        run = [(i, i + offset) for i in range(len(a)) if 0 <= i + offset < len(b)]
        gains = [
            round((NEUTRAL_DISTANCE - reference_distance(a, b, i, j)) * 64)
            if is_informative(a[i : i + 1])[0] or is_informative(b[j : j + 1])[0]
            else 0
            for i, j in run
        ]
        best = max(best, *(sum(gains[s:e]) for s in range(len(gains)) for e in range(s, len(gains) + 1)), 0)
    return best


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7))
def test_no_run_at_any_offset_scores_higher(seed: int, n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(seed)
    film = unrelated_hashes(rng, 1, 16)[0]
    start_a, start_b = rng.integers(0, 16 - n_a), rng.integers(0, 16 - n_b)
    a, b = noisy(rng, film[start_a : start_a + n_a]), noisy(rng, film[start_b : start_b + n_b], 0.08)
    if rng.random() < 0.3:
        a[: n_a // 2] = 0
    wanted = reference_score(a, b)
    found = align(a, b)
    if found is None:
        return
    i, j, n = found.start_a, found.start_b, found.length
    distances = [reference_distance(a, b, i + k, j + k) for k in range(n)]
    counted = [
        k for k in range(n) if is_informative(a[i + k : i + k + 1])[0] or is_informative(b[j + k : j + k + 1])[0]
    ]
    assert sum(round((NEUTRAL_DISTANCE - distances[k]) * 64) for k in counted) == wanted
    assert found.distance == pytest.approx(np.mean([distances[k] for k in counted]))


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.1, 0.5, 1.0]))
def test_no_pair_that_aligns_is_screened_out(seed: int, n_a: int, n_b: int, min_share: float) -> None:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(20):
        film = unrelated_hashes(rng, 1, 16)[0]
        start_a, start_b = rng.integers(0, 17 - n_a), rng.integers(0, 17 - n_b)
        level = rng.choice([0.0, 0.03, 0.1, 0.2, 0.3])
        a, b = film[start_a : start_a + n_a].copy(), noisy(rng, film[start_b : start_b + n_b], level)
        a[rng.random(n_a) < 0.2] = 0
        b[rng.random(n_b) < rng.choice([0.0, 0.5])] = 0
        pairs.append((a, b, rng.random() < 0.3, rng.choice([0.0, 4.0, 9.0, 15.0])))
    a_KA, b_KB, mirror_K, max_distance_K = (np.array(values) for values in zip(*pairs, strict=True))
    min_length = min_share * min(n_a, n_b)
    screened = may_align(a_KA, b_KB, mirror_K, max_distance_K, min_length)
    for (a, b, mirror, max_distance), may in zip(pairs, screened, strict=True):
        found = align(a, b, mirror)
        wanted = found is not None and found.length >= min_length and found.distance <= max_distance
        assert may or not wanted


def test_unrelated_pairs_are_screened_out() -> None:
    rng = np.random.default_rng(3)
    many = np.array(unrelated_hashes(rng, 400, 16))
    copies = np.array([noisy(rng, film) for film in many[:200]])
    for a, b, share in ((many[:200], many[200:], 0.0), (many[:200], copies, 1.0)):
        assert may_align(a, b, np.zeros(200, bool), np.full(200, 9.0), 8).mean() == share


@settings(max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_best_run_against_all_runs(gains: list[int]) -> None:
    start, end = best_run(np.array(gains, float))
    runs = [(sum(gains[s:e]), e - s, -s) for s in range(len(gains)) for e in range(s + 1, len(gains) + 1)]
    assert (sum(gains[start:end]), end - start, -start) == max(runs)


def test_part_is_aligned_where_it_was_cut() -> None:
    rng = np.random.default_rng(1)
    film = unrelated_hashes(rng, 1, 40)[0]
    found = align(film, noisy(rng, film[13:29]))
    assert found is not None
    assert (found.start_a, found.start_b, found.length) == (13, 0, 16)
    assert 0.5 < found.distance < 5


def test_frames_half_a_step_late_are_near() -> None:
    """Each bit changes at some time; in a copy half a step late, half of those of the step have changed."""
    rng = np.random.default_rng(2)
    times = np.sort(rng.integers(0, 80, 64))

    def at(time: float) -> int:
        return sum(1 << i for i in range(64) if times[i] <= time) ^ 0x5DEECE66D1234567

    a = np.array([at(4 * k) for k in range(20)], np.uint64)
    b = np.array([at(4 * k + 2) for k in range(20)], np.uint64)
    plain = np.bitwise_count(a ^ b).mean()
    found = align(a, b)
    assert found is not None
    assert plain > 1
    assert found.distance < 0.25 * plain


@pytest.mark.slow
def test_unrelated_clips_do_not_align() -> None:
    rng = np.random.default_rng(3)
    many = unrelated_hashes(rng, 40)
    assert all((found := align(a, b)) is None or found.length <= 2 for a in many[:20] for b in many[20:])
    assert 31 < np.mean([frame_distances(a, b).mean() for a in many[:20] for b in many[20:]]) < 34


def test_flat_frames_match_nothing_and_do_not_split_a_run() -> None:
    rng = np.random.default_rng(4)
    film = unrelated_hashes(rng, 1)[0]
    black = np.zeros(12, np.uint64)
    assert align(black, black) is None
    assert align(black, film) is None
    faded = film.copy()
    faded[4:7] = 0
    found = align(faded, faded.copy())
    assert found is not None
    assert (found.length, found.distance) == (12, 0.0)
    # A black frame does not change when it is mirrored, but its hash does.
    flipped = np.where(faded == 0, np.uint64(0), mirrored(faded))
    found = align(faded, flipped, mirror=True)
    assert found is not None
    assert (found.length, found.distance) == (12, 0.0)
    # Mostly black: too few frames are informative.
    faded[2:] = 0
    both = align(faded, faded.copy())
    assert both is None or both.length == 2


def test_hashes_with_few_bits_set_are_not_near_each_other() -> None:
    cards = [
        np.full(4, sum(1 << int(i) for i in np.random.default_rng(seed).choice(64, 12, replace=False)), np.uint64)
        for seed in range(20)
    ]
    plain = [float(np.bitwise_count(a[0] ^ b[0])) for a in cards for b in cards if a is not b]
    weighted = [float(frame_distances(a, b)[0, 0]) for a in cards for b in cards if a is not b]
    assert np.mean(plain) < 21
    assert 30 < np.mean(weighted) < 34


def test_empty_clip_aligns_with_nothing() -> None:
    assert align(np.zeros(0, np.uint64), np.ones(3, np.uint64)) is None
