"""Exclusions: a forgotten span stays out of any clips, and records are read as they were written."""

from __future__ import annotations

import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from cluster.config import ConfigError
from pipelines.engine import exclusions
from pipelines.engine.exclusions import Exclusions, Span, TrainingRun
from pipelines.engine.step import Mark

SPAN = Span(Fraction(1), Fraction(7, 3))


def test_clips_overlapping_an_excluded_span_are_left_out() -> None:
    row = {"source": "/in/a.mp4", "uid": "s", "time_base_num": 1, "time_base_den": 30}
    clips = [{"uid": f"c{i}", "start_pts": 30 * i, "end_pts": 30 * i + 30} for i in range(4)]
    excluded = Exclusions(spans={exclusions.uri_digest("/in/a.mp4"): (Span(Fraction(1), Fraction(2)),)})
    left = excluded.filter_clips(row, clips)
    assert isinstance(left, list)
    assert [clip["uid"] for clip in left] == ["c0", "c2", "c3"]
    assert excluded.filter_clips({**row, "source": "/in/b.mp4"}, clips) == clips
    longer = [{"uid": "long", "start_pts": 0, "end_pts": 31}]
    assert excluded.filter_clips(row, longer) == Mark("dropped", exclusions.REASON)
    assert pickle.loads(pickle.dumps(excluded)) == excluded, "workers get it pickled"


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = TrainingRun("run-0", "digest", trained_on_it=True)
    of_clip = replace(exclusions.new_record("/in/a.mp4", SPAN), runs=(run,), removed_rows={"scan-0": 3})
    of_file = exclusions.finish_record(exclusions.new_record("/in/b.mp4", None))
    for record in (of_clip, of_file):
        exclusions.write_record(str(tmp_path), record)
    assert {record.id: record for record in exclusions.read_records(str(tmp_path))} == {
        of_clip.id: of_clip,
        of_file.id: of_file,
    }
    assert exclusions.read_exclusions(str(tmp_path)) == Exclusions(
        frozenset({exclusions.uri_digest("/in/b.mp4")}), {exclusions.uri_digest("/in/a.mp4"): (SPAN,)}
    )


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    record = exclusions.new_record("/in/a.mp4", SPAN)
    exclusions.write_record(str(tmp_path), record)
    path = Path(exclusions.record_uri(str(tmp_path), record.id))
    path.write_text(path.read_text().replace('"7/3"', '"seven"'))
    with pytest.raises(ConfigError, match=rf"{record.id}\.json: cannot be read .* put it back"):
        exclusions.read_records(str(tmp_path))
