"""Generated footage: files that say so are told from others, and the watermark is found where it is looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import worldloom
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.recipe import Recipe
from pipelines.video.generated import is_generated, leading_frames
from tests.training.sampling.test_media import moving_gradient
from tests.training.sampling.test_watermark import drawn_clip
from training.sampling.marks import Marker
from training.sampling.media import write_mp4, write_png, write_video


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp", "png"])
def test_marked_files_say_that_they_are_generated(suffix: str, tmp_path: Path) -> None:
    plain, marked = str(tmp_path / f"plain.{suffix}"), str(tmp_path / f"marked.{suffix}")
    finish = Marker().finish_sheet()
    for uri, how in ((plain, None), (marked, finish)):
        if suffix == "png":
            write_png(uri, moving_gradient()[0], how)
        else:
            write_video(uri, moving_gradient(), 8, how)
    assert (is_generated(plain), is_generated(marked)) == (False, True)
    times = [time_s for time_s, _ in leading_frames(marked)]
    assert times == pytest.approx([0.0] if suffix == "png" else np.arange(10) / 8, abs=0.006)


@pytest.mark.slow
def test_scan_tells_and_keep_drops_generated_footage(tmp_path: Path) -> None:
    clip = drawn_clip(24)
    write_mp4(str(tmp_path / "real.mp4"), clip, 8)
    worldloom.save(str(tmp_path / "signed.mp4"), clip, 8, marks=worldloom.MarkSettings(watermark=False))
    worldloom.save(str(tmp_path / "stripped.mp4"), clip, 8, marks=worldloom.MarkSettings(credentials=False))
    for watermark, expected in ((False, {"signed"}), (True, {"signed", "stripped"})):
        recipe = Recipe.model_validate(
            {
                "name": "generated",
                "out": str(tmp_path / f"out-{watermark}"),
                "sources": [{"videos": str(tmp_path / "*.mp4")}],
                "curate": [
                    {"scan": {"watermark": watermark}},
                    {"cut": {"min_s": 0.5}},
                    {"keep": {"generated": {"in": [False]}}},
                ],
            }
        )
        run_segments(recipe, inline)
        rows = worldloom.read_table(recipe).to_pylist()
        dropped = {Path(row["source"]).stem for row in rows if row["fate"] == "dropped"}
        assert dropped == {Path(row["source"]).stem for row in rows if row["generated"]} == expected
        reasons = {row["fate_reason"] for row in rows if row["fate"] == "dropped"}
        assert reasons == {"generated is True, not one of False"}
