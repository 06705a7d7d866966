"""Identities of clips, and the hashes stored in their column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.duplicates.clip_hashes import identities_of, unpack_hashes
from tests.support.clip_rows import clip_table


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
    found = identities_of(rows)
    assert found[0] == found[1] == found[2] == "video:x:1/2:1/1"
    assert found[3] is None
    assert found[4] != found[0]


def test_clip_whose_bytes_are_no_hashes_is_named() -> None:
    with pytest.raises(ValueError, match="clip b: phash has 9 bytes"):
        unpack_hashes(pa.array([b"12345678", b"123456789"]), ["a", "b"])
