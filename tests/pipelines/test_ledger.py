"""The ledger: every input has one fate, with its step and reason, and the sums agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import inline
from pipelines.curation import run_segments
from pipelines.ledger import Account, ledger, losses
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import final_rows, keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split


@pytest.mark.slow
def test_every_input_has_one_fate(tmp_path: Path) -> None:
    write_toys(tmp_path, ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5", "f-1"])
    steps = [Measure(), Split(), keep(number=Bound(max=5)), Score(), keep(score=Bound(max=9)), Pick()]
    curation = run_segments(toy_recipe(tmp_path, steps), inline)
    videos, images, clips = ledger(curation)
    assert (videos.inputs, dict(videos.fates)) == (7, {"kept": 5, "dropped": 1, "failed": 1, "duplicate": 0})
    assert images.inputs == 0
    # 18 clips = 3 + 8 + 1 + 5 + 1. number > 5 drops 2 of c; score > 9 drops numbers 4 and 5 of c and 4 of e. One clip
    # of each number from 0 to 3 is kept, and the others are duplicates.
    assert (clips.inputs, dict(clips.fates)) == (18, {"kept": 4, "dropped": 5, "failed": 0, "duplicate": 9})
    assert all(account.balanced for account in (videos, images, clips))
    rows = {(Path(row["source"]).stem, row["clip_index"]): row for row in final_rows(curation)}
    with_kept_clips = {stem for (stem, index), row in rows.items() if index is not None and row["fate"] == "kept"}
    # d and f have one clip each, number 0, of which one is a duplicate.
    assert 0 < len(with_kept_clips) < 5
    assert (videos.contributing, images.contributing, clips.contributing) == (len(with_kept_clips), 0, None)
    assert rows["broken-1", None]["fate_reason"] == "OSError: cannot be decoded"
    assert (rows["broken-1", None]["fate"], rows["broken-1", None]["fate_step"]) == ("failed", "measure")
    assert rows["b-0", None]["fate"] == "dropped"
    late = rows["c-8", 7]
    assert (late["fate_step"], late["fate_value"], late["fate_bound"], late["score"]) == ("keep", 7.0, 5.0, None)
    assert rows["c-8", 4]["fate_step"] == "keep#2"
    assert rows["c-8", 4]["score"] == 16.0


def test_a_ledger_says_how_many_files_contribute_clips() -> None:
    fates = {"kept": 15, "dropped": 1, "failed": 1, "duplicate": 0}
    assert str(Account("videos", 17, fates, (), 14)) == (
        "videos: 17 = 15 kept (14 contribute clips) + 1 dropped + 1 failed + 0 duplicate"
    )
    assert "15 kept (1 contributes clips) +" in str(Account("videos", 17, fates, (), 1))
    assert str(Account("videos", 17, fates, (), 15)) == "videos: 17 = 15 kept + 1 dropped + 1 failed + 0 duplicate"
    assert str(Account("clips", 17, fates, ())) == "clips: 17 = 15 kept + 1 dropped + 1 failed + 0 duplicate"


def test_losses_are_listed_by_cause() -> None:
    videos = Account(
        "videos", 2, {}, (("failed", "scan", "DecodeError: a.mp4: x", 1), ("failed", "scan", "DecodeError: b", 1))
    )
    clips = Account(
        "clips", 9, {}, (("dropped", "keep", "luma under 0.05", 7), ("duplicate", "dedup", "near-duplicate of x", 1))
    )
    assert losses([videos, clips]) == (
        "7 clips dropped by keep (luma under 0.05), 2 videos failed in scan (DecodeError), "
        "1 clip marked as duplicate by dedup (near-duplicate)"
    )
