"""The closest pairs of clips of different splits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.duplicates.across import CLOSEST, closest_across
from pipelines.engine.shuffle import LocalRows
from pipelines.video.phash import mirrored
from tests.support.clip_rows import ScatteredRows, clip_table, noisy, random_flips, unrelated_hashes


def split_rows() -> pa.Table:
    rng = np.random.default_rng(0)
    films = unrelated_hashes(rng, 6)
    copies = [films[0], noisy(rng, films[1], 0.03), mirrored(noisy(rng, films[2], 0.1)), noisy(rng, films[3], 0.02)]
    parts = ["train"] * 6 + ["val", "val", "test", "train"]
    contents = [f"c{i}" for i in range(6)] + ["c0", "x", "y", "z"]
    return clip_table(films + copies, content_hash=contents, split=parts)


def test_closest_pairs_come_first_and_include_exact_copies() -> None:
    found = closest_across(LocalRows([split_rows()]), "split")
    assert found.schema == CLOSEST
    assert [(row["uid_a"], row["uid_b"]) for row in found.to_pylist()] == [
        ("0000", "0006"),
        ("0001", "0007"),
        ("0002", "0008"),
    ]
    distances = found["distance"].to_pylist()
    assert distances[0] == 0 < distances[1] < distances[2] < 16
    assert found["share"].to_pylist() == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_limit_and_independence_of_order_and_parts() -> None:
    table = split_rows()
    wanted = closest_across(LocalRows([table]), "split", 2)
    assert len(wanted) == 2
    assert all(
        closest_across(ScatteredRows([table], seed), "split", 2).to_pylist() == wanted.to_pylist() for seed in range(4)
    )
    with pytest.raises(ValueError, match="limit=0"):
        closest_across(LocalRows([table]), "split", 0)


def test_rows_without_a_split_are_left_out() -> None:
    table = split_rows()
    parts = [None if part == "val" else part for part in table["split"].to_pylist()]
    table = table.set_column(table.column_names.index("split"), "split", pa.array(parts, pa.string()))
    assert closest_across(LocalRows([table]), "split")["uid_b"].to_pylist() == ["0008"]
    assert len(closest_across(LocalRows([table.slice(0, 0)]), "split")) == 0


def test_pairs_are_found_beyond_the_bound_of_dedup() -> None:
    rng = np.random.default_rng(5)
    film = unrelated_hashes(rng, 1, 40)[0]
    far = film ^ random_flips(rng, 40, 0.17)
    found = closest_across(LocalRows([clip_table([film, far], split=["train", "val"])]), "split").to_pylist()
    assert len(found) == 1
    assert 9 < found[0]["distance"] < 14


def test_pairs_that_are_also_alike_mirrored_count_once() -> None:
    rng = np.random.default_rng(6)
    films = [np.concatenate([film, mirrored(film)]) for film in unrelated_hashes(rng, 3, 8)]
    table = clip_table(films * 2, split=["train"] * 3 + ["val"] * 3)
    found = closest_across(LocalRows([table]), "split", 3)
    assert found["uid_a"].to_pylist() == ["0000", "0001", "0002"]
    assert found["distance"].to_pylist() == [0.0, 0.0, 0.0]
