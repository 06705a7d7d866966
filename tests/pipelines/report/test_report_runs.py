"""Curves of a run: thinned without losing what matters, whatever was recorded."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.runs import MEAN_POINTS, RAW_POINTS, curves, differences, evenly, extremes, labels
from tests.support.made_runs import make_records
from training.autoencoder_training.settings import AutoencoderTrainSettings
from training.data.plan import PlanSettings
from training.models.dit import DiT
from training.settings import TrainSettings

POINTS = st.lists(st.floats(-1e6, 1e6), max_size=300).map(lambda values: list(enumerate(values)))


@given(POINTS, st.integers(2, 50))
def test_thinning_keeps_the_order_the_last_point_and_for_raw_values_every_record(
    points: list[tuple[int, float]], most: int
) -> None:
    even, extreme = evenly(points, most), extremes(points, most)
    for thinned in (even, extreme):
        assert len(thinned) <= most
        assert thinned == sorted(thinned)
        assert set(thinned) <= set(points)
    if points:
        assert even[-1] == points[-1]
        for best in (min, max):
            assert best(value for _, value in extreme) == best(value for _, value in points)


def test_a_run_has_curves_of_all_that_it_recorded() -> None:
    found = curves(make_records(120))
    assert found["loss"][0] == list(range(1, 121))
    assert len(found["mean/loss"][0]) == 120
    assert {
        "lr",
        "grad_norm",
        "mean/tokens_per_s",
        "mean/mfu",
        "mean/idle_share",
        "val_loss",
        "mean/loss_kind/image",
        "val_loss_kind/video",
    } <= found.keys()
    assert sum(name.startswith("mean/loss_time/") for name in found) == 10
    assert max(found["grad_norm"][1]) == 80
    sparse = found["mean/loss_time/0.3"]
    assert 40 < len(sparse[0]) < 120, "steps without a sample of that noise level have no point"


def test_a_long_run_is_thinned_and_its_spike_is_still_there() -> None:
    found = curves(make_records(9000, validate_every=1))
    for name, (steps, values) in found.items():
        assert len(steps) == len(values) <= (MEAN_POINTS if name.startswith("mean/") else RAW_POINTS), name
    assert max(found["grad_norm"][1]) == 80
    assert found["mean/loss"][0][-1] == 9000


def test_what_is_no_finite_number_has_no_point() -> None:
    records = [
        {"step": 1, "loss": 1.0, "note": "a word"},
        {"step": 2, "loss": math.nan, "lr": 1.0},
        {"step": 3, "loss": 2.0},
    ]
    found = curves(records)
    assert found["loss"] == [[1, 3], [1.0, 2.0]]
    assert found["mean/loss"][1] == pytest.approx([1.0, 1.5])
    assert found["lr"] == [[2], [1.0]]
    assert "note" not in found


def told(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What training writes of a run."""
    return TrainSettings(**changes).model_dump(mode="json") | {"seed": seed, "data": "abc"}


def test_runs_are_named_by_what_they_are_and_by_their_folder_where_that_is_not_enough() -> None:
    autoencoder = AutoencoderTrainSettings(steps=9, warmup_steps=0).model_dump(mode="json")
    settings = [
        told(model=DiT(preset="L")),
        told(1),
        told(2, batch=PlanSettings(policy="bucketed")),
        told(2),
        None,
        autoencoder,
    ]
    assert labels([f"run-{number}" for number in range(6)], settings, [900, 1200, 1200, 1200, 5, 9]) == [
        "dit L, pack, 900 steps",
        "dit 6x192x6, pack, 1,200 steps, run-1",
        "dit 6x192x6, bucketed, 1,200 steps",
        "dit 6x192x6, pack, 1,200 steps, run-3",
        "run-4",
        "autoencoder small, 9 steps",
    ]


def test_runs_are_told_apart_by_the_settings_that_differ() -> None:
    weighted = PlanSettings(weights={"*x1": 0.5})
    runs = [told(steps=900), None, told(1, lr=0.002, steps=1000), told(lr=0.002, batch=weighted)]
    assert differences(runs) == [
        {"lr": "0.0001", "batch.weights.*x1": "–", "seed": "0"},
        {},
        {"lr": "0.002", "batch.weights.*x1": "–", "seed": "1"},
        {"lr": "0.002", "batch.weights.*x1": "0.5", "seed": "0"},
    ]
    assert differences([told()]) == [{}]
    autoencoder = AutoencoderTrainSettings().model_dump(mode="json")
    assert differences([told(), autoencoder, autoencoder | {"preset": "large"}]) == [
        {},
        {"preset": "small"},
        {"preset": "large"},
    ]
    assert len(differences([told(), told() | {"data": "x" * 999}])[1]["data"]) == 80
