"""Keys of perceptual hashes: how many a clip emits, and that copies share them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.duplicates.clip_hashes import as_clips
from pipelines.duplicates.keys import (
    KEYS_PER_CLIP,
    KEYS_PER_HASH,
    MASK_BITS,
    N_MASKS,
    SAMPLED_BITS,
    block_masks,
    key_rows,
    masks,
    splitmix64,
    unique_rows,
)
from pipelines.video.phash import ODD_COLUMNS, is_informative, mirrored
from tests.support.clip_rows import clip_table, unrelated_hashes


def keys_of(*sequences: np.ndarray, mirror: bool = True, **columns: object) -> pa.Table:
    return key_rows(as_clips(clip_table(sequences, **columns)), mirror)


def test_masks_are_different_and_keep_steady_bits() -> None:
    odd = int(ODD_COLUMNS)
    assert len(set(masks())) == N_MASKS
    assert all(mask.bit_count() == MASK_BITS and mask < 1 << SAMPLED_BITS and mask & odd for mask in masks())
    assert len(block_masks()) == 35
    assert all(27 <= mask.bit_count() <= 28 and mask & odd for mask in block_masks())


def test_still_clip_emits_every_key_and_a_long_one_some() -> None:
    still = np.full(40, 0x123456789ABCDEF0, np.uint64)
    assert len(keys_of(still)) == N_MASKS
    long = np.random.default_rng(0).integers(0, 2**64, 400, np.uint64)
    assert len(keys_of(long)) == pytest.approx(KEYS_PER_CLIP + KEYS_PER_HASH * 400, rel=0.05)


def test_flat_hashes_emit_no_key() -> None:
    assert len(keys_of(np.zeros(8, np.uint64))) == 0
    assert keys_of(np.zeros(0, np.uint64)).schema == keys_of(np.arange(1, 9, dtype=np.uint64) << 40).schema


@pytest.mark.slow
@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
@example(25)  # one of its hashes has too few bits set to be informative, and its mirrored hash has enough
def test_mirrored_copy_has_the_same_keys(seed: int) -> None:
    film = np.random.default_rng(seed).integers(0, 2**64, 6, np.uint64)
    film = film[is_informative(film) & is_informative(mirrored(film))]
    one, other = (keys_of(hashes, content_hash=["same"]).sort_by("key") for hashes in (film, mirrored(film)))
    assert one["key"] == other["key"]
    assert one["hash"] == other["hash"]
    assert all(a != b for a, b in zip(one["mirrored"].to_pylist(), other["mirrored"].to_pylist(), strict=True))
    assert not set(keys_of(film, mirror=False)["key"].to_pylist()) & set(
        keys_of(mirrored(film), mirror=False)["key"].to_pylist()
    )


def test_images_and_videos_share_no_key() -> None:
    one = np.array([0x123456789ABCDEF0], np.uint64)
    both = keys_of(one, one, kind=["video", "image"])
    assert len(set(both["key"].to_pylist())) == len(both)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_keys_do_not_depend_on_other_clips_of_the_table(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = as_clips(clip_table([rng.choice(film, 9) for film in unrelated_hashes(rng, 6)]))
    whole = key_rows(table, True)
    parts = pa.concat_tables([key_rows(table.slice(start, 2), True) for start in (4, 0, 2)])
    order = [(name, "ascending") for name in ("key", "clip")]
    assert whole.sort_by(order).to_pylist() == parts.sort_by(order).to_pylist()


def test_splitmix64_is_one_to_one() -> None:
    values = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(splitmix64(values, 3))) == len(values)
    assert np.bitwise_count(splitmix64(values, 3)).mean() == pytest.approx(32, abs=0.1)


def test_unique_rows() -> None:
    assert unique_rows((np.array([2, 1, 2, 1]), np.array([0, 5, 0, 4]))).tolist() == [3, 1, 0]
