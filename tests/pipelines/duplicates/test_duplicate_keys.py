from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.duplicates.candidates import NEIGHBOURS, candidates
from pipelines.duplicates.clip_hashes import as_clips, identity, sequences
from pipelines.duplicates.keys import (
    KEYS_A_CLIP,
    KEYS_A_HASH,
    SAMPLED_BITS,
    TABLES,
    TURN,
    WIDTH,
    block_masks,
    key_rows,
    masks,
    mixed,
    unique_rows,
)
from pipelines.video.phash import is_informative, mirrored
from tests.support.clip_rows import clip_table, noisy, strangers


def keys_of(*sequences_: np.ndarray, mirror: bool = True, **columns: object) -> pa.Table:
    return key_rows(as_clips(clip_table(sequences_, **columns)), mirror)


def test_masks_are_different_and_of_the_steady_bits() -> None:
    assert len(set(masks())) == TABLES
    assert all(mask.bit_count() == WIDTH and mask < 1 << SAMPLED_BITS and mask & int(TURN) for mask in masks())
    assert len(block_masks()) == 35
    assert all(27 <= mask.bit_count() <= 28 and mask & int(TURN) for mask in block_masks())


def test_a_still_clip_emits_every_key_and_a_long_one_about_eight_a_hash() -> None:
    still = np.full(40, 0x123456789ABCDEF0, np.uint64)
    assert len(keys_of(still)) == TABLES
    long = np.random.default_rng(0).integers(0, 2**64, 400, np.uint64)
    assert len(keys_of(long)) == pytest.approx(KEYS_A_CLIP + KEYS_A_HASH * 400, rel=0.05)


def test_flat_hashes_emit_nothing() -> None:
    assert len(keys_of(np.zeros(8, np.uint64))) == 0
    assert keys_of(np.zeros(0, np.uint64)).schema == keys_of(np.arange(1, 9, dtype=np.uint64) << 40).schema


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
@example(25)  # one of its hashes has too few bits to be told by, its mirrored one has enough
def test_a_mirrored_copy_has_the_same_keys_turned_the_other_way(seed: int) -> None:
    film = np.random.default_rng(seed).integers(0, 2**64, 6, np.uint64)
    film = film[is_informative(film) & is_informative(mirrored(film))]
    one, other = (keys_of(hashes, content_hash=["same"]).sort_by("key") for hashes in (film, mirrored(film)))
    assert one["key"] == other["key"]
    assert one["hash"] == other["hash"]
    assert all(a != b for a, b in zip(one["turned"].to_pylist(), other["turned"].to_pylist(), strict=True))
    assert not set(keys_of(film, mirror=False)["key"].to_pylist()) & set(
        keys_of(mirrored(film), mirror=False)["key"].to_pylist()
    )


def test_images_and_videos_share_no_key() -> None:
    one = np.array([0x123456789ABCDEF0], np.uint64)
    both = keys_of(one, one, kind=["video", "image"])
    assert len(set(both["key"].to_pylist())) == len(both)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_keys_do_not_depend_on_what_comes_along(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = as_clips(clip_table([rng.choice(film, 9) for film in strangers(rng, 6)]))
    whole = key_rows(table, True)
    parts = pa.concat_tables([key_rows(table.slice(start, 2), True) for start in (4, 0, 2)])
    order = [(name, "ascending") for name in ("key", "clip")]
    assert (
        whole.sort_by(order) == parts.sort_by(order).combine_chunks()
        or whole.sort_by(order).to_pylist() == parts.sort_by(order).to_pylist()
    )


@settings(max_examples=30)
@given(
    st.integers(0, 2**64 - 1).filter(lambda value: value.bit_count() >= 10),
    st.sets(st.integers(0, 63), max_size=4),
    st.booleans(),
)
def test_no_image_within_four_bits_is_missed(value: int, flipped: set[int], turned: bool) -> None:
    one, other = np.array([value], np.uint64), np.array([value ^ sum(1 << bit for bit in flipped)], np.uint64)
    if not (is_informative(one)[0] and is_informative(other)[0] and is_informative(mirrored(other))[0]):
        return
    table = as_clips(clip_table([one, mirrored(other) if turned else other], kind=["image"] * 2))
    assert [turned] == candidates(key_rows(table, True), 11, 4)["mirrored"].to_pylist()


def test_mixing_is_one_to_one() -> None:
    values = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mixed(values, 3))) == len(values)
    assert np.bitwise_count(mixed(values, 3)).mean() == pytest.approx(32, abs=0.1)


def test_candidates_are_all_pairs_of_a_key_of_different_files_with_near_hashes() -> None:
    rng = np.random.default_rng(5)
    film = strangers(rng, 1)[0]
    clips = [film, noisy(rng, film, 0.02), noisy(rng, film, 0.02), *strangers(rng, 3)]
    table = as_clips(clip_table(clips, content_hash=["a", "b", "a", "c", "d", "e"]))
    numbers = table["clip"].to_pylist()
    found = candidates(key_rows(table, True), 11, 4).to_pylist()
    assert {frozenset((row["a"], row["b"])) for row in found} == {
        frozenset((numbers[0], numbers[1])),
        frozenset((numbers[1], numbers[2])),
    }
    assert all(row["a"] < row["b"] and not row["mirrored"] for row in found)
    assert len(candidates(key_rows(table, True), 0, 4)) < 2
    assert max(found, key=lambda row: row["votes"])["votes"] > 20


def test_a_key_of_thousands_costs_neighbours_only_and_joins_all() -> None:
    n = 3000
    clips = [np.full(1, 0x0F1E2D3C4B5A6978, np.uint64)] * n
    found = candidates(key_rows(as_clips(clip_table(clips)), True), 11, 4)
    assert len(found) <= n * NEIGHBOURS
    assert len(set(found["a"].to_pylist()) | set(found["b"].to_pylist())) == n


def test_a_still_film_of_a_thousand_clips_does_not_hide_the_copy_of_one() -> None:
    film = [np.full(1, 0x0F1E2D3C4B5A6978, np.uint64)] * 1001
    table = as_clips(clip_table(film, content_hash=["film"] * 1000 + ["copy"], start_pts=list(range(1001))))
    found = candidates(key_rows(table, True), 11, 4)
    copy = table["clip"][1000].as_py()
    assert NEIGHBOURS <= len(found) <= 2 * NEIGHBOURS
    assert all(copy in (row["a"], row["b"]) for row in found.to_pylist())


def test_unique_rows() -> None:
    assert unique_rows((np.array([2, 1, 2, 1]), np.array([0, 5, 0, 4]))).tolist() == [3, 1, 0]


def test_identity_is_the_exact_span_in_any_time_base() -> None:
    film = np.zeros(1, np.uint64)
    rows = clip_table(
        [film] * 5,
        content_hash=["x", "x", "x", None, "x"],
        first_pts=[10, 7500, 0, 0, 10],
        start_pts=[25, 7500 + 45000, 500, 500, 26],
        end_pts=[40, 7500 + 90000, 1000, 1000, 40],
        time_base_num=[1, 1, 1, 1, 1],
        time_base_den=[30, 90000, 1000, 1000, 30],
    )
    found = identity(rows)
    assert found[0] == found[1] == found[2] == "video:x:1/2:1/1"
    assert found[3] is None
    assert found[4] != found[0]


def test_bytes_that_are_no_hashes_are_named() -> None:
    with pytest.raises(ValueError, match="clip b: phash has 9 bytes"):
        sequences(pa.array([b"12345678", b"123456789"]), ["a", "b"])
