"""Histograms, thresholds, balance: counts against counting by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster import storage
from cluster.config import ConfigError
from pipelines.curation import Curation
from pipelines.report.balance import apart, mean_deviation
from pipelines.report.columns import axis_of, round_to
from pipelines.report.gather import gather
from pipelines.report.picks import MAX_FRAMES, evenly, in_turn, small
from pipelines.report.whatif import whatif
from tests.support.made_tables import make_curation, make_rows

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make_rows(80)


@pytest.fixture(scope="module")
def data(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return gather(*make_curation(tmp_path_factory.mktemp("report"), rows), WHEN)


def clips(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "clip_index" in row]


def test_histograms_count_every_clip_once(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    names = [item["name"] for item in data["histograms"]]
    assert names[:4] == ["luma", "motion", "camera", "sharpness"], (
        "columns with a threshold come first, in the recipe's order"
    )
    for item in data["histograms"][:4]:
        measured = [row for row in clips(rows) if row[item["name"]] is not None]
        here = [row for row in measured if row["fate"] == "dropped" and row["fate_reason"].startswith(item["name"])]
        kept = [row for row in measured if row["fate"] == "kept"]
        assert [sum(counts) for counts in item["counts"]] == [
            len(kept),
            len(here),
            len(measured) - len(kept) - len(here),
        ]
        assert item["missing"] == len(clips(rows)) - len(measured)


def test_a_histogram_is_that_of_numpy_inside_its_axis(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    item = next(item for item in data["histograms"] if item["name"] == "luma")
    values = np.array([row["luma"] for row in clips(rows)])
    edges = np.array(item["edges"])
    expected = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], 0)), edges)[0]
    # Edges in the page are rounded to five digits.
    assert np.abs(np.array(item["counts"]).sum(0) - expected).sum() <= 2
    assert {0.1, 0.9} <= set(item["edges"]), "an edge on each threshold"


def test_thresholds_count_what_they_drop_and_name_the_nearest(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    table = data["rows"]["table"]
    assert [(t["column"], t["side"]) for t in data["thresholds"]] == [
        ("luma", "min"),
        ("luma", "max"),
        ("motion", "min"),
        ("camera", "in"),
        ("sharpness", "min"),
    ]
    for t in data["thresholds"]:
        reason = f"{t['column']} {t['words']}" if t["side"] != "in" else "camera is"
        mine = [row for row in clips(rows) if (row.get("fate_reason") or "").startswith(reason)]
        assert (t["dropped"], t["hours"]) == (len(mine), pytest.approx(sum(row["duration_s"] for row in mine) / 3600))
        if t["side"] == "in":
            continue
        for side, candidates in zip(
            t["near"],
            (mine, [row for row in rows if row["fate"] == "kept" and row.get(t["column"]) is not None]),
            strict=True,
        ):
            expected = sorted(candidates, key=lambda row: (abs(row[t["column"]] - t["bound"]), row["uid"]))[: len(side)]
            assert [table["uid"][i] for i in side] == [row["uid"] for row in expected]
            assert len(side) == min(6, len(candidates))


def passes(row: dict[str, Any], bounds: dict[tuple[str, str], float], on: tuple[str, str, float]) -> bool:
    """Whether a clip is kept when one bound of the recipe is another; nulls break none, but have no place on the curve of theirs."""
    column, side, at = on
    if row["fate"] == "duplicate" or row[column] is None or row["camera"] not in (None, "still", "pan"):
        return False
    return all(
        row[name] is None or (row[name] >= bound if which == "min" else row[name] <= bound)
        for (name, which), bound in {**bounds, (column, side): at}.items()
    )


def test_yields_are_those_of_whatif_and_of_counting(
    rows: list[dict[str, Any]], data: dict[str, Any], tmp_path: Path
) -> None:
    recipe, curation = make_curation(tmp_path, rows)
    curves = {
        (curve.label, curve.column, curve.side): curve.points for curve in whatif(curation, recipe, recipe).curves
    }
    told = {(t["label"], t["column"], t["side"]): t for t in data["thresholds"]}
    assert set(curves) == set(told) - {("keep", "camera", "in")}
    assert told["keep", "camera", "in"]["yields"] == []
    bounds = {(column, side): t["bound"] for (_, column, side), t in told.items() if side != "in"}
    for (label, column, side), points in curves.items():
        yields = told[label, column, side]["yields"]
        assert yields == [
            (pytest.approx(at, rel=1e-4), amount.clips, pytest.approx(amount.hours)) for at, amount in points
        ]
        for at, amount in points:
            mine = [row for row in clips(rows) if passes(row, bounds, (column, side, at))]
            assert (amount.clips, amount.hours) == (
                len(mine),
                pytest.approx(sum(row["duration_s"] for row in mine) / 3600),
            )
        kept = [row for row in clips(rows) if row["fate"] == "kept" and row[column] is not None]
        assert next(n for at, n, _ in yields if at == told[label, column, side]["bound"]) == len(kept), (
            "as it is, it keeps what is kept"
        )


def test_a_run_that_kept_no_clip_has_a_report(tmp_path: Path) -> None:
    lost = [row for row in make_rows(60) if row["fate"] in ("failed", "dropped")]
    found = gather(*make_curation(tmp_path, [row for row in lost if "clip_index" not in row] + clips(lost)[:1]), WHEN)
    assert found["balance"]["clips"] == {}
    assert {t["column"] for t in found["thresholds"]} == {"luma", "motion", "camera", "sharpness"}


def test_at_the_end_of_a_run_the_page_is_what_it_is_later(
    rows: list[dict[str, Any]], data: dict[str, Any], tmp_path: Path
) -> None:
    """Then the segments still say how much of them was there before the run."""
    recipe, curation = make_curation(tmp_path, rows)
    fresh = replace(curation, segments=tuple(replace(state, n_done=0, seconds=1.0) for state in curation.segments))
    assert gather(recipe, fresh, WHEN)["thresholds"] == data["thresholds"]


def test_the_same_rows_in_other_parts_give_the_same_page(
    rows: list[dict[str, Any]], data: dict[str, Any], tmp_path: Path
) -> None:
    again = gather(*make_curation(tmp_path, rows[::-1], n_parts=5), WHEN)
    for key in set(data) - {"time", "lineage"}:
        assert again[key] == data[key], key


def test_duplicates_stand_beside_what_they_repeat(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    table, found = data["rows"]["table"], data["duplicates"]
    sizes = Counter(row["duplicate_of"] for row in rows if "duplicate_of" in row)
    assert (found["n_groups"], found["n_duplicates"]) == (len(sizes), sum(sizes.values()))
    for group in found["groups"]:
        leader = table["uid"][group["kept"]]
        assert table["fate"][group["kept"]] == "kept"
        assert group["size"] == sizes[leader]
        assert group["copies"]
        assert {table["duplicate_of"][i] for i in group["copies"]} == {leader}
    first = [table["duplicate_distance"][group["copies"][0]] for group in found["groups"]]
    assert first[0] == max(row["duplicate_distance"] for row in rows if "duplicate_of" in row), "the least alike first"


def test_failures_are_by_class_with_file_and_message(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    expected = Counter(row["fate_reason"].split(":")[0] for row in rows if row["fate"] == "failed")
    assert {item["error"]: item["rows"] for item in data["failures"]} == expected
    for item in data["failures"]:
        assert len(item["listed"]) == item["rows"]
        assert all(
            data["rows"]["table"]["fate"][listed["row"]] == "failed" and listed["message"] for listed in item["listed"]
        )


def test_rows_carry_pictures_and_places(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    table = data["rows"]["table"]
    assert len(set(table["uid"])) == len(table["uid"]) == len(rows), "so few rows are all in the page"
    for i, clip in enumerate(table["clip"]):
        assert len(data["rows"]["strips"][i]) == (0 if clip is None else 3)
    by_uid = {row["uid"]: row for row in rows}
    at = next(i for i, clip in enumerate(table["clip"]) if clip == 2)
    row = by_uid[table["uid"][at]]
    assert table["start_s"][at] == pytest.approx((row["start_pts"] - 40) / 1000)


def test_splits_are_read_and_compared(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, rows)
    kept = [row for row in rows if row["fate"] == "kept"]
    split = ["val" if i % 4 == 0 else "train" for i in range(len(kept))]
    storage.write_table(
        storage.join(recipe.out_uri, "splits.parquet"), pa.table({"uid": [row["uid"] for row in kept], "split": split})
    )
    found = gather(recipe, curation, WHEN)["balance"]
    assert found["splits"] == ["train", "val"]
    assert found["clips"] == Counter(split)
    kinds = next(item for item in found["shares"] if item["name"] == "kind")
    expected = Counter((row["kind"], name) for row, name in zip(kept, split, strict=True))
    assert {
        (label, name): kinds["counts"][name][k] for k, label in enumerate(kinds["labels"]) for name in ("train", "val")
    } == expected
    assert found["words"]["counts"]["val"][found["words"]["words"].index("heron")] == sum(
        "heron" in row["caption"] for row, name in zip(kept, split, strict=True) if name == "val"
    )
    assert "the" not in found["words"]["words"]


def test_tables_without_duplicate_columns_or_signals_are_reported_too(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe, curation = make_curation(tmp_path, rows)
    state = curation.final
    gone = ("duplicate_of", "duplicate_kind", "duplicate_distance", "duplicate_overlap", "caption", "fps")
    schema = pa.schema([field for field in state.segment.schema if field.name not in gone])
    older = type(state)(
        type(state.segment)(**{**vars(state.segment), "schema": schema}),
        state.folder,
        state.n_inputs,
        state.n_done,
        state.rows,
    )
    found = gather(recipe, Curation(curation.sources, (*curation.segments[:-1], older), complete=True), WHEN)
    assert found["duplicates"] is None
    assert found["balance"]["words"]["words"] == []


def test_an_incomplete_curation_is_refused_in_words(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))
    with pytest.raises(ConfigError, match=r"curation is not complete: dedup has \d+ of \d+ rows"):
        gather(recipe, Curation(curation.sources, curation.segments, complete=False), WHEN)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.lists(st.floats(-1e3, 1e3), max_size=3))
@example([5e-324], [])
@example([0.0], [5e-324])
@example([1.0, 1.0 + 2**-52], [1.0])
def test_an_axis_rises_and_has_an_edge_on_every_mark(values: list[float], marks: list[float]) -> None:
    axis = axis_of(np.sort(np.array(values)), marks)
    assert (np.diff(axis.edges) > 0).all()
    assert all(np.isclose(axis.edges, mark, rtol=1e-12, atol=1e-12).any() for mark in marks)
    place, valid = axis.place(np.array([*values, np.nan]))
    assert valid.tolist() == [True] * len(values) + [False]
    assert place.min() >= 0
    assert place.max() < len(axis.edges) - 1


def test_a_skewed_column_gets_a_logarithmic_axis() -> None:
    values = np.sort(np.random.default_rng(0).lognormal(-4, 1.5, 2000))
    axis = axis_of(values, [0.01])
    assert axis.is_log
    assert 0.01 in axis.edges.tolist()
    assert not axis_of(np.linspace(0, 1, 100), [0.5]).is_log


def test_how_far_splits_are_apart() -> None:
    assert apart({"train": [50, 50], "val": [5, 5]})["val"]["distance"] == 0
    assert apart({"train": [10, 0], "val": [0, 10]})["val"]["distance"] == 1
    assert apart({"kept": [1, 2]}) == {}


@given(st.integers(1, 40), st.data())
def test_the_mean_deviation_is_that_of_all_draws(n: int, data: st.DataObject) -> None:
    k, m = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    expected = sum(abs(y - m * k / n) * comb(k, y) * comb(n - k, m - y) for y in range(min(k, m) + 1)) / comb(n, m)
    assert mean_deviation(n, k, m) == pytest.approx(expected, abs=1e-9)


def test_a_split_of_one_clip_is_never_more_than_wholly_apart() -> None:
    found = apart({"train": [4, 3, 2, 1, 1], "val": [0, 0, 1, 0, 0]})["val"]
    assert 0 <= found["chance"] <= 1


def test_chance_is_what_even_splits_are_apart_on_average() -> None:
    random = np.random.default_rng(0)
    shares = [0.4, 0.3, 0.2, 0.1]
    drawn = [
        apart({"train": random.multinomial(900, shares), "val": random.multinomial(100, shares)})["val"]
        for _ in range(400)
    ]
    assert np.mean([item["distance"] for item in drawn]) == pytest.approx(
        np.mean([item["chance"] for item in drawn]), rel=0.05
    )


def test_pictures_are_few_and_small() -> None:
    assert evenly([b"a", b"b", b"c"], MAX_FRAMES) == [b"a", b"b", b"c"]
    assert evenly([bytes([i]) for i in range(9)], 3) == [b"\x00", b"\x04", b"\x08"]
    assert small(b"\xff" * 50_000) == b"\xff" * 50_000, "what is no picture stays as it is"
    assert in_turn([[("a", 1), ("a", 2)], [("b", 1)]]) == [("a", 1), ("b", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.123456789, 0.12346), (float("nan"), None), (float("inf"), None), (None, None), (0.0, 0.0)],
)
def test_numbers_of_the_page(value: float | None, expected: float | None) -> None:
    assert round_to(value) == expected
