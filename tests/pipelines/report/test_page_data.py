"""Data of the page against the rows of the table."""

from __future__ import annotations

import base64
import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster import storage
from cluster.config import ConfigError
from pipelines.curation import Curation
from pipelines.report import row_selection, thumbnails
from pipelines.report.page_data import page_data
from tests.support.report_runs import write_run
from tests.support.report_tables import WHEN, clips_of, make_curation, make_rows


@pytest.mark.slow
def test_rows_are_the_same_however_they_are_stored(
    rows: list[dict[str, Any]], data: dict[str, Any], tmp_path: Path
) -> None:
    again = page_data(*make_curation(tmp_path, rows[::-1], n_parts=5), WHEN)
    for key in set(data) - {"costs", "lineage"}:
        assert again[key] == data[key], key


@pytest.mark.slow
def test_a_run_that_just_ended_has_the_same_thresholds(
    rows: list[dict[str, Any]], data: dict[str, Any], tmp_path: Path
) -> None:
    """Its segments still have the number of rows that were done before the run."""
    recipe, curation = make_curation(tmp_path, rows)
    states = tuple(replace(state, n_done=0, seconds=1.0) for state in curation.segments)
    assert page_data(recipe, replace(curation, segments=states), WHEN)["thresholds"] == data["thresholds"]


def test_rows_have_thumbnails_and_start_times(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    table = data["rows"]["table"]
    assert len(set(table["uid"])) == len(table["uid"]) == len(rows), "so few rows are all on the page"
    for i, clip in enumerate(table["clip"]):
        assert len(data["rows"]["thumbnails"][i]) == (0 if clip is None else 3)
    by_uid = {row["uid"]: row for row in rows}
    third_clip = table["clip"].index(2)
    row = by_uid[table["uid"][third_clip]]
    assert table["start_s"][third_clip] == pytest.approx((row["start_pts"] - 40) / 1000)


def test_duplicates_are_beside_the_clip_they_repeat(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    table, found = data["rows"]["table"], data["duplicates"]
    sizes = Counter(row["duplicate_of"] for row in rows if "duplicate_of" in row)
    assert (found["n_groups"], found["n_duplicates"]) == (len(sizes), sum(sizes.values()))
    for group in found["groups"]:
        kept_uid = table["uid"][group["kept"]]
        assert table["fate"][group["kept"]] == "kept"
        assert group["size"] == sizes[kept_uid]
        assert group["copies"]
        assert {table["duplicate_of"][i] for i in group["copies"]} == {kept_uid}
    first = table["duplicate_distance"][found["groups"][0]["copies"][0]]
    assert first == max(row["duplicate_distance"] for row in rows if "duplicate_of" in row), "the least similar first"


def test_failures_are_by_class_with_file_and_message(rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    expected = Counter(row["fate_reason"].split(":")[0] for row in rows if row["fate"] == "failed")
    assert {item["error"]: item["rows"] for item in data["failures"]} == expected
    for item in data["failures"]:
        assert len(item["listed"]) == item["rows"]
        for listed in item["listed"]:
            assert data["rows"]["table"]["fate"][listed["row"]] == "failed"
            assert listed["message"]


@pytest.mark.slow
def test_the_page_is_limited_whatever_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "MAX_BYTES", 100_000)
    monkeypatch.setattr(row_selection, "select_rows", functools.partial(row_selection.select_rows, max_rows=500))
    rows = make_rows(700)
    found = page_data(*make_curation(tmp_path, rows), WHEN)
    assert len(rows) > row_selection.MAX_ROWS
    assert len(found["rows"]["table"]["uid"]) == 500
    with_images = [images for images in found["rows"]["thumbnails"] if images]
    assert 0 < len(with_images) <= thumbnails.MAX_CLIPS
    assert sum(len(base64.b64decode(text)) for images in with_images for text in images) <= 100_000
    assert sum(cause["rows"] for cause in found["causes"]) == len(rows), "counts are those of all rows"
    causes = {(cause["fate"], cause["step"]) for cause in found["causes"] if cause["fate"] != "kept"}
    table = found["rows"]["table"]
    assert causes <= set(zip(table["fate"], table["step"], strict=True)), "the page has rows of every cause"


@pytest.mark.slow
def test_a_run_without_kept_clips_has_a_page(tmp_path: Path) -> None:
    lost = [row for row in make_rows(60) if row["fate"] in ("failed", "dropped")]
    rows = [row for row in lost if "clip_index" not in row] + clips_of(lost)[:1]
    found = page_data(*make_curation(tmp_path, rows), WHEN)
    assert found["balance"]["clips"] == {}
    assert {item["column"] for item in found["thresholds"]} == {"luma", "motion", "camera", "sharpness"}


@pytest.mark.slow
def test_a_table_without_optional_columns_has_a_page(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, rows)
    missing = ("duplicate_of", "duplicate_kind", "duplicate_distance", "duplicate_overlap", "caption", "fps")
    segment = curation.final.segment
    schema = pa.schema([field for field in segment.schema if field.name not in missing])
    smaller = replace(curation.final, segment=replace(segment, schema=schema))
    found = page_data(recipe, replace(curation, segments=(*curation.segments[:-1], smaller)), WHEN)
    assert found["duplicates"] is None
    assert found["balance"]["words"]["words"] == []


def test_an_incomplete_curation_is_refused(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(3))
    with pytest.raises(ConfigError, match=r"curation is not complete: dedup has \d+ of \d+ rows; run `worldloom cur"):
        page_data(recipe, Curation(curation.sources, curation.segments, complete=False), WHEN)


@pytest.mark.slow
def test_runs_and_samples_are_found(tmp_path: Path) -> None:
    recipe, curation = make_curation(tmp_path, make_rows(20))
    records = [
        {"step": step, "loss": 1 / step, "tokens_per_s": 10.0} | ({"val_loss": 0.5} if step % 500 == 0 else {})
        for step in range(1, 1001)
    ]
    write_run(recipe.out_uri, "run-abc", records)
    storage.write_bytes(storage.join(recipe.out_uri, "samples", "a b.mp4"), b"")
    storage.write_bytes(storage.join(recipe.out_uri, "samples", "a b.mp4.json"), b'{"prompt": "a heron"}')
    found = page_data(recipe, curation, WHEN)
    (run,) = found["training"]["runs"]
    assert (run["name"], run["steps"], run["tokens_per_s"], run["previews"]) == ("run-abc", 1000, 10.0, [])
    assert run["curves"]["val_loss"] == [[500, 1000], [0.5, 0.5]]
    assert found["samples"] == [{"file": "samples/a%20b.mp4", "kind": "video", "prompt": "a heron"}]
