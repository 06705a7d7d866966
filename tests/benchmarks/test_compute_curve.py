"""The figure of samples and scores by compute."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.compute_curve import COLOURS, METRICS, figure, settings_for, widest
from pipelines.recipe import load_recipe
from tests.support.exported_models import untrained_card
from tests.support.quickstart import QUICKSTART


def test_runs_differ_in_their_length_alone() -> None:
    recipe = load_recipe(QUICKSTART).train
    assert recipe is not None
    short, long = settings_for(recipe, 90), settings_for(recipe, 900)
    assert (short.decay_steps, long.decay_steps, short.warmup_steps, long.warmup_steps) == (60, 600, 22, 40)
    lengths = dict.fromkeys(("steps", "decay_steps", "warmup_steps", "validate_every"))
    assert short.model_copy(update=lengths) == long.model_copy(update=lengths)


def test_samples_are_of_the_longest_and_widest_bucket() -> None:
    card = untrained_card(buckets=("96x64x9", "64x96x17", "112x64x17", "160x64x1"))
    assert widest(card) == (112, 64, 17)


def test_the_figure_has_a_column_and_a_point_per_model() -> None:
    found = [
        {"steps": 10 * 4**k, "tflop": 0.5 * 4**k, "val_loss": 1.0 / (k + 1), **dict.fromkeys(METRICS, k / 4)}
        for k in range(3)
    ]
    whole = np.asarray(figure(found, Image.new("RGB", (1500, 100), "white")))
    assert whole.shape[1] == 1500
    last = tuple(bytes.fromhex(COLOURS["number"][1:]))
    columns = np.flatnonzero((whole == last).all(-1).any(0))
    assert columns.min() > 750, "scores are in the right panel"
