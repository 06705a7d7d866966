"""Comparison of splits: counts against the rows, and distances against combinatorics and simulation."""

from __future__ import annotations

from collections import Counter
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import storage
from pipelines.report.balance import mean_deviation, split_distances
from pipelines.report.page_data import page_data
from tests.support.report_tables import WHEN, make_curation


@pytest.mark.slow
def test_splits_are_read_and_compared(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, rows)
    kept = [row for row in rows if row["fate"] == "kept"]
    splits = ["val" if i % 4 == 0 else "train" for i in range(len(kept))]
    table = pa.table({"uid": [row["uid"] for row in kept], "split": splits})
    storage.write_table(storage.join(recipe.out_uri, "splits.parquet"), table)
    found = page_data(recipe, curation, WHEN)["balance"]
    assert found["splits"] == ["train", "val"]
    assert found["clips"] == Counter(splits)
    kinds = next(chart for chart in found["charts"] if chart["name"] == "kind")
    expected = Counter((row["kind"], split) for row, split in zip(kept, splits, strict=True))
    labels = list(enumerate(kinds["labels"]))
    assert {(label, split): kinds["counts"][split][k] for k, label in labels for split in ("train", "val")} == expected
    words = found["words"]
    with_heron = [split for row, split in zip(kept, splits, strict=True) if "heron" in row["caption"]]
    assert words["counts"]["val"][words["words"].index("heron")] == with_heron.count("val")
    assert "the" not in words["words"]


def test_the_distance_is_the_share_that_would_have_to_change() -> None:
    assert split_distances({"train": [50, 50], "val": [5, 5]})["val"]["distance"] == 0
    assert split_distances({"train": [10, 0], "val": [0, 10]})["val"]["distance"] == 1
    assert split_distances({"kept": [1, 2]}) == {}


@pytest.mark.slow
@given(st.integers(1, 40), st.data())
def test_mean_deviation_is_that_of_all_draws(n: int, data: st.DataObject) -> None:
    k, m = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    expected = sum(abs(y - m * k / n) * comb(k, y) * comb(n - k, m - y) for y in range(min(k, m) + 1)) / comb(n, m)
    assert mean_deviation(n, k, m) == pytest.approx(expected, abs=1e-9)


def test_the_expected_distance_of_one_clip_is_at_most_1() -> None:
    found = split_distances({"train": [4, 3, 2, 1, 1], "val": [0, 0, 1, 0, 0]})["val"]
    assert 0 <= found["expected"] <= 1


def test_the_expected_distance_is_the_mean_of_random_splits() -> None:
    rng = np.random.default_rng(0)
    shares = [0.4, 0.3, 0.2, 0.1]
    drawn = [
        split_distances({"train": rng.multinomial(900, shares), "val": rng.multinomial(100, shares)})["val"]
        for _ in range(400)
    ]
    mean = np.mean([item["distance"] for item in drawn])
    assert mean == pytest.approx(np.mean([item["expected"] for item in drawn]), rel=0.05)
