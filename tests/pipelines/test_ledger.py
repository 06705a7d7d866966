"""The ledger: every input has one fate, with its step and reason, and the sums agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import inline
from pipelines.curation import run_segments
from pipelines.ledger import ledger
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import final_rows, keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split


@pytest.mark.slow
def test_every_input_has_one_fate(tmp_path: Path) -> None:
    write_toys(tmp_path, ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"])
    steps = [Measure(), Split(), keep(number=Bound(max=5)), Score(), keep(score=Bound(max=9)), Pick()]
    curation = run_segments(toy_recipe(tmp_path, steps), inline)
    videos, images, clips = ledger(curation)
    assert (videos.inputs, dict(videos.fates)) == (6, {"kept": 4, "dropped": 1, "failed": 1, "duplicate": 0})
    assert images.inputs == 0
    # 17 clips = 3 + 8 + 1 + 5. number > 5 drops 2 of c; score > 9 drops numbers 4 and 5 of c and 4 of e. One clip of
    # each number from 0 to 3 is kept, and the others are duplicates.
    assert (clips.inputs, dict(clips.fates)) == (17, {"kept": 4, "dropped": 5, "failed": 0, "duplicate": 8})
    assert all(account.balanced for account in (videos, images, clips))
    rows = {(Path(row["source"]).stem, row["clip_index"]): row for row in final_rows(curation)}
    assert rows["broken-1", None]["fate_reason"] == "OSError: cannot be decoded"
    assert (rows["broken-1", None]["fate"], rows["broken-1", None]["fate_step"]) == ("failed", "measure")
    assert rows["b-0", None]["fate"] == "dropped"
    late = rows["c-8", 7]
    assert (late["fate_step"], late["fate_value"], late["fate_bound"], late["score"]) == ("keep", 7.0, 5.0, None)
    assert rows["c-8", 4]["fate_step"] == "keep#2"
    assert rows["c-8", 4]["score"] == 16.0
