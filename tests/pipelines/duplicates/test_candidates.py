"""Candidate pairs: which clips with a common key are paired, and how many."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.duplicates import candidates as module
from pipelines.duplicates.candidates import CANDIDATES, MAX_NEIGHBOURS, candidates
from pipelines.duplicates.clip_hashes import as_clips
from pipelines.duplicates.keys import KEYS, key_rows
from pipelines.video.phash import is_informative, mirrored
from tests.support.clip_rows import clip_table, noisy, unrelated_hashes


@pytest.mark.slow
@settings(max_examples=30)
@given(
    st.integers(0, 2**64 - 1).filter(lambda value: value.bit_count() >= 10),
    st.sets(st.integers(0, 63), max_size=4),
    st.booleans(),
)
def test_no_image_within_four_bits_is_missed(value: int, flipped: set[int], mirror: bool) -> None:
    one, other = np.array([value], np.uint64), np.array([value ^ sum(1 << bit for bit in flipped)], np.uint64)
    if not (is_informative(one)[0] and is_informative(other)[0] and is_informative(mirrored(other))[0]):
        return
    table = as_clips(clip_table([one, mirrored(other) if mirror else other], kind=["image"] * 2))
    assert [mirror] == candidates(key_rows(table, True), 11, 4)["mirrored"].to_pylist()


def test_candidates_are_of_different_files_with_near_hashes() -> None:
    rng = np.random.default_rng(5)
    film = unrelated_hashes(rng, 1)[0]
    clips = [film, noisy(rng, film, 0.02), noisy(rng, film, 0.02), *unrelated_hashes(rng, 3)]
    table = as_clips(clip_table(clips, content_hash=["a", "b", "a", "c", "d", "e"]))
    numbers = table["clip"].to_pylist()
    found = candidates(key_rows(table, True), 11, 4).to_pylist()
    assert {frozenset((row["a"], row["b"])) for row in found} == {
        frozenset((numbers[0], numbers[1])),
        frozenset((numbers[1], numbers[2])),
    }
    assert all(row["a"] < row["b"] and not row["mirrored"] for row in found)
    assert len(candidates(key_rows(table, True), 0, 4)) < 2
    assert max(found, key=lambda row: row["shared_keys"])["shared_keys"] > 20


def reference_candidates(keys: pa.Table, neighbours: int) -> list[dict[str, object]]:
    """Return the pairs by walking through each key: one clip of each origin after the other, like hashes first."""
    shared: Counter[tuple[int, int, bool]] = Counter()
    every = keys.to_pylist()
    for key in {row["key"] for row in every}:
        origins: dict[int, list[dict[str, int]]] = {}
        seen = set()
        for row in sorted(every, key=lambda row: (row["origin"], row["clip"], row["hash"])):
            if row["key"] == key and row["clip"] not in seen:
                seen.add(row["clip"])
                origins.setdefault(row["origin"], []).append(row)
        ranked = [
            (rank, row["hash"].to_bytes(8, "little", signed=True), row["clip"], row)
            for rows in origins.values()
            for rank, row in enumerate(rows)
        ]
        line = [row for *_, row in sorted(ranked, key=lambda entry: entry[:3])]
        for i, a in enumerate(line):
            for b in line[i + 1 : i + 1 + neighbours]:
                distance = ((a["hash"] ^ b["hash"]) % 2**64).bit_count()
                if a["origin"] != b["origin"] and distance <= (4 if a["still"] else 11):
                    low, high = sorted((a["clip"], b["clip"]))
                    shared[low, high, a["mirrored"] != b["mirrored"]] += 1
    return [dict(zip(CANDIDATES.names, (*pair, count), strict=True)) for pair, count in sorted(shared.items())]


@pytest.mark.slow
@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([1, 2, 32]))
def test_candidates_equal_those_of_a_walk(seed: int, n: int, neighbours: int) -> None:
    """Hashes of one key differ in any bits, as those of unrelated clips do; some keys differ in their lowest bits."""
    rng = np.random.default_rng(seed)
    key = rng.choice([-(2**62), -(2**62) + 1, 7, 2**40], n)
    clip = rng.integers(0, 25, n)
    hashes = rng.choice(np.array([0, 7, 2**10 - 1, -1, -2, 2**62, 3 << 20]), n)
    still = key == 7
    columns = [key, clip, clip % 6, hashes, rng.random(n) < 0.3, still]
    keys = pa.table([pa.array(column) for column in columns], schema=KEYS)
    # A clip emits a key once, and exact copies, which share a number, emit the same.
    keys = keys.group_by(["key", "clip", "origin", "still"]).aggregate([("hash", "min"), ("mirrored", "min")])
    keys = keys.rename_columns([name.removesuffix("_min") for name in keys.column_names]).select(KEYS.names)
    keys = pa.concat_tables([keys, keys.slice(0, n // 3)]).combine_chunks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_NEIGHBOURS", neighbours)
        assert candidates(keys, 11, 4).to_pylist() == reference_candidates(keys, neighbours)


@pytest.mark.slow
def test_key_of_thousands_pairs_each_clip_with_some_neighbours() -> None:
    n = 3000
    clips = [np.full(1, 0x0F1E2D3C4B5A6978, np.uint64)] * n
    found = candidates(key_rows(as_clips(clip_table(clips)), True), 11, 4)
    assert len(found) <= n * MAX_NEIGHBOURS
    assert len(set(found["a"].to_pylist()) | set(found["b"].to_pylist())) == n


def test_copy_is_found_among_a_thousand_like_clips_of_one_file() -> None:
    film = [np.full(1, 0x0F1E2D3C4B5A6978, np.uint64)] * 1001
    table = as_clips(clip_table(film, content_hash=["film"] * 1000 + ["copy"], start_pts=list(range(1001))))
    found = candidates(key_rows(table, True), 11, 4)
    copy = table["clip"][1000].as_py()
    assert MAX_NEIGHBOURS <= len(found) <= 2 * MAX_NEIGHBOURS
    assert all(copy in (row["a"], row["b"]) for row in found.to_pylist())
