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
from training.evaluation.world_scores import WorldScores, fitting_shape
from training.sampling.exported_model import ExportedModel
from training.sampling.settings import SolverSettings, VideoShape

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


@pytest.mark.slow
def test_the_longest_bucket_of_the_nearest_aspect_is_taken(tmp_path: Path) -> None:
    file = Stream(0, "held_out").file(0)
    while file.is_image or file.plan.width <= file.plan.height:
        file = Stream(0, "held_out").file(file.index + 1)
    truth = file.truth(file.name)
    card = ExportedModel(write_untrained_export(tmp_path)).card
    buckets = ("96x96x9", "96x64x1", "96x64x9", "96x64x17", "96x64x999", "64x96x17")
    shape = fitting_shape(truth, truth.shots[0], card.model_copy(update={"buckets": buckets}))
    assert shape == VideoShape(17, 64, 96, 8.0)
    assert fitting_shape(truth, truth.shots[0], card.model_copy(update={"buckets": ("96x64x999",)})) is None
