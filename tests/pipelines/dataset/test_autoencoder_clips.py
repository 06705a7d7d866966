"""Clips for training an autoencoder: pixels and splits of their sources, and spans that do not overlap."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset.autoencoder_clips import INDEX, ClipSettings, fitting_sizes, make_clips, spans
from pipelines.engine.sources import SourceSettings
from pipelines.recipe import SplitSettings
from tests.support.autoencoder_footage import video_frames, write_footage

pytestmark = pytest.mark.slow


def test_clips_show_their_sources(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    footage = write_footage(tmp_path / "in")
    sources = (SourceSettings(videos=str(footage / "*.mp4")), SourceSettings(images=str(footage / "*.png")))
    # Half of six files: one of the files is broken, so each split has at least two that give clips.
    splits, settings = SplitSettings(val=0.5), ClipSettings(sizes=(32, 48), frames=9, per_source=2)
    out = str(tmp_path / "out")
    folder = make_clips(sources, splits, settings, out)
    index = json.loads((folder / INDEX).read_text())
    files = sorted(folder.glob("*/*.npy"))
    assert index["clips"] == len(files) == 4 * 2 * 2 + 2
    assert list(index["failures"]) == [str(footage / "broken.mp4")]
    assert "broken.mp4: no clip: DecodeError" in caplog.text
    split_of: dict[str, set[str]] = {}
    for file in files:
        split_of.setdefault(file.name.partition("-")[0], set()).add(file.parent.name)
    assert all(len(splits) == 1 for splits in split_of.values()), "no source is in two splits"
    assert set().union(*split_of.values()) == {"train", "val"}
    shapes = {np.load(file).shape for file in files}
    assert shapes == {(9, 26, 39, 3), (9, 39, 59, 3), (1, 32, 32, 3), (1, 48, 48, 3)}
    (large,) = [np.load(file) for file in files if file.name.startswith("0-") and file.name.endswith("-0001.npy")]
    start = round(24 * spans(40 / 24, 24, 9, 2)[0][0])
    source = video_frames(0)[start : start + 9].mean(axis=-1)
    assert np.abs(large.mean((1, 2, 3)) - source.mean((1, 2))).max() < 3
    before = {file: file.stat().st_mtime_ns for file in files}
    assert make_clips(sources, splits, settings, out) == folder
    assert {file: file.stat().st_mtime_ns for file in files} == before


@given(st.floats(0, 100), st.sampled_from([8.0, 24.0, 29.97]), st.integers(1, 50), st.integers(1, 10))
def test_spans_are_in_the_file_and_do_not_overlap(duration_s: float, fps: float, frames: int, max_clips: int) -> None:
    found = spans(duration_s, fps, frames, max_clips)
    assert 1 <= len(found) <= max_clips
    assert all(1 <= number <= frames for _, number in found)
    ends = [start_s + number / fps for start_s, number in found]
    assert found[0][0] >= 0
    assert ends[-1] <= max(duration_s, 1 / fps) + 1e-6
    assert all(end_s <= start_s + 1e-6 for end_s, (start_s, _) in zip(ends, found[1:], strict=False))


@given(st.integers(1, 4000), st.integers(1, 4000), st.lists(st.integers(16, 1024), min_size=1, max_size=4))
def test_frames_are_not_enlarged(width: int, height: int, sizes: list[int]) -> None:
    for w, h in fitting_sizes(width, height, sizes):
        assert w <= width
        assert h <= height
