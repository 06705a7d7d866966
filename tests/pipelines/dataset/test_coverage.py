"""Coverage: seconds and samples by bucket are those of the windows, and losses are warned of."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest

from pipelines.dataset.coverage import Coverage, coverage
from pipelines.steps._samples import samples_of, windows_of
from pipelines.steps.encode import Encode
from training.data.buckets import BucketSettings
from training.data.windows import covered_pts

SIZES = (
    BucketSettings(size=64, frames=(1, 17, 33), fps=8, aspects=("16:9", "1:1")),
    BucketSettings(size=128, frames=(17,), fps=8, aspects=("16:9",)),
)


def clip(seconds: float, width: int = 640, height: int = 360, **values: Any) -> dict[str, Any]:
    return {
        "uid": "c",
        "kind": "video",
        "width": width,
        "height": height,
        "crop": None,
        "start_pts": 500,
        "end_pts": 500 + round(1000 * seconds),
        "time_base_num": 1,
        "time_base_den": 1000,
        **values,
    }


def of(rows: list[dict[str, Any]], **settings: Any) -> Coverage:
    return coverage(Encode(buckets=SIZES, **settings), pa.Table.from_pylist(rows))


IMAGE = clip(0.001, kind="image")
ROWS = [clip(seconds) for seconds in (1.5, 2.0, 2.9, 4.0, 6.0, 6.0, 61.3)] + [clip(3.0, 100, 90), IMAGE]


@pytest.mark.parametrize("settings", [{}, {"lengths": "all", "mirror": True, "stills": True}, {"sizes": "best"}])
def test_counts_are_those_of_every_clips_samples(settings: dict[str, Any]) -> None:
    found = of(ROWS, **settings)
    rules = Encode(buckets=SIZES, **settings).sample_rules
    expected: dict[tuple[str, float], list[float]] = {}
    n_samples, used_s, unassigned = 0, 0.0, 0
    for row in ROWS:
        windows = windows_of(row, rules)
        if isinstance(windows, str):
            unassigned += 1
            continue
        used_s += covered_pts(windows) / 1000
        samples = [sample for part in samples_of(row, windows, rules) for sample in part.samples]
        n_samples += len(samples)
        for bucket in {sample.window.bucket for sample in samples}:
            mine = [sample.window for sample in samples if sample.window.bucket == bucket]
            total = expected.setdefault((bucket.name, bucket.fps), [0, 0.0])
            total[0] += len(mine)
            total[1] += covered_pts(mine) / 1000
    assert {
        (use.name, use.fps): [use.n_samples, pytest.approx(use.used_s)] for use in found.buckets if use.n_samples
    } == (expected)
    assert (found.n_clips, found.n_samples, sum(found.unassigned.values())) == (len(ROWS), n_samples, unassigned)
    assert found.kept_s == pytest.approx(1.5 + 2.0 + 2.9 + 4.0 + 6.0 + 6.0 + 61.3 + 3.0)
    assert found.used_s == pytest.approx(used_s)
    names = {bucket.name for entry in SIZES for bucket in entry.buckets()}
    assert {use.name for use in found.buckets} == names


def test_a_crop_decides_on_the_bucket() -> None:
    square = of([clip(4.0, crop=[140, 0, 500, 360])])
    assert [use.name for use in square.buckets if use.n_samples] == ["64x64x33", "176x96x17"]


def test_every_length_that_clips_can_fill_is_used() -> None:
    found = {use.name: use.n_samples for use in of([clip(6.0), clip(4.0)]).buckets}
    assert found == {
        "80x48x1": 0,
        "80x48x17": 1,
        "80x48x33": 2,
        "64x64x1": 0,
        "64x64x17": 0,
        "64x64x33": 0,
        "176x96x17": 5,
    }


def test_lost_seconds_are_warned_of() -> None:
    # 2.9 s hold one window of 2 s; 6 s are used whole.
    assert not [text for text in of([clip(6.0), clip(2.2)]).warnings() if "in no sample" in text]
    (warning,) = [text for text in of([clip(2.9), clip(2.9)]).warnings() if "in no sample" in text]
    assert warning.startswith("1.8 of 5.8 s (31.0%) of kept clips are in no sample. Add shorter lengths")


def test_empty_buckets_are_warned_of() -> None:
    (videos, images) = of([clip(2.0)]).warnings()
    assert videos == ("no clip fills 3 of 7 buckets: 80x48x33 at 8 fps, 64x64x17 at 8 fps, 64x64x33 at 8 fps")
    assert images.startswith("no image fills 2 of 7 buckets: 80x48x1 at 8 fps, 64x64x1 at 8 fps; videos give")
    assert coverage(Encode(buckets=SIZES), pa.Table.from_pylist([clip(2.0)]).slice(0, 0)).warnings() == []


def test_clips_without_a_bucket_are_warned_of() -> None:
    warning = of([clip(1.0), clip(6.0), clip(6.0, 60, 40)]).warnings()[0]
    assert warning.startswith("no bucket fits 2 of 3 clips (66.7%) that filters keep: 1 because 1.00 s is shorter than")
    assert "1 because 60x40 is smaller than 80x48" in warning
    assert warning.endswith("Add smaller or shorter buckets")
    # Reasons that differ only in the clip's length are one.
    short = of([clip(1.0), clip(1.1), clip(1.2), clip(6.0, 60, 40)]).warnings()[0]
    assert "3 because they are shorter than 2.00 s, the duration of 17 frames at 8 fps" in short
    assert "1 because 60x40 is smaller than 80x48" in short
    data = json.loads(json.dumps(of([clip(1.0), clip(6.0)]).as_json()))
    assert list(data["unassigned"].values()) == [1]
    assert len(data["warnings"]) == 4


def test_failed_clips_are_kept_and_not_used() -> None:
    rows = pa.Table.from_pylist([clip(4.0), clip(6.0)]).append_column("failed", pa.array([True, False]))
    found = coverage(Encode(buckets=SIZES), rows)
    assert (found.kept_s, found.used_s) == (10.0, 6.0)
    assert found.used_share == pytest.approx(float(Fraction(6, 10)))
