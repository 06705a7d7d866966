"""Scores of a drawn world while a model trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.arrays import Pixels
from pipelines.scenes.stream import WORLD, Stream
from tests.support.exported_models import write_untrained_export
from training.evaluation import world_scores
from training.evaluation.truth import write_truth
from training.evaluation.world_scores import WorldScores
from training.sampling.exported_model import ExportedModel
from training.sampling.settings import SolverSettings

SOLVER = SolverSettings(steps=1, guidance=1.0)


def write_held_out(folder: Path, count: int) -> list[Pixels]:
    """Write the truth of the first square videos of the held-out stream; return their first 9 frames at 8 per second.

    The videos themselves are not written.
    """
    square = (file for file in map(Stream(0, "held_out").file, range(400)) if file.plan.width == file.plan.height == 96)
    files = [file for file in square if not file.is_image and file.plan.fps == 8][:count]
    write_truth(str(folder / "truth-0.parquet"), WORLD, [file.truth(file.name) for file in files])
    return [
        np.stack(list(file.motion.frames(96, 96, file.backdrop))[:17]) for file in sorted(files, key=lambda f: f.name)
    ]


@pytest.mark.slow
def test_clips_that_show_what_captions_say_score_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = write_held_out(tmp_path, 2)
    model = ExportedModel(write_untrained_export(tmp_path / "model"))
    model.card = model.card.model_copy(update={"buckets": ("96x96x17",)})
    scores = WorldScores(str(tmp_path), 2)
    noise = scores.measure(model.parts, SOLVER)
    assert noise["background"] < 1
    assert noise["number"] == 0
    drawn = iter(clips)
    monkeypatch.setattr(world_scores, "decode_video", lambda *_: next(drawn))
    assert not torch.equal(*scores._texts)
    assert scores.measure(model.parts, SOLVER) == {"background": 1, "colours": 1, "kinds": 1, "number": 1}
