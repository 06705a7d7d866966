"""Training runs on the page: labels, settings that differ, thinned curves, and previews."""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.report import runs
from pipelines.report.runs import (
    MAX_MEAN_POINTS,
    MAX_RAW_POINTS,
    curves,
    different_settings,
    downsample_min_max,
    downsample_strided,
    run_labels,
    running_mean,
    training_runs,
)
from tests.support.report_runs import make_records, write_failed_preview, write_run
from tests.support.report_tables import HOSTILE_TEXT, make_recipe
from training.autoencoder_training.settings import AutoencoderTrainSettings
from training.data.plan import PlanSettings
from training.models.dit import DiT
from training.settings import TrainSettings

POINTS = st.lists(st.floats(-1e6, 1e6), max_size=300).map(lambda values: list(enumerate(values)))


@pytest.mark.slow
@given(POINTS, st.integers(2, 50))
def test_thinned_curves_keep_order_last_point_and_extremes(points: list[tuple[int, float]], max_points: int) -> None:
    strided, min_max = downsample_strided(points, max_points), downsample_min_max(points, max_points)
    for thinned in (strided, min_max):
        assert len(thinned) <= max_points
        assert thinned == sorted(thinned)
        assert set(thinned) <= set(points)
    if points:
        assert strided[-1] == points[-1]
        for extreme in (min, max):
            assert extreme(value for _, value in min_max) == extreme(value for _, value in points)


def test_a_run_has_curves_of_all_its_metrics() -> None:
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


@pytest.mark.slow
def test_a_long_run_is_thinned_and_keeps_its_spike() -> None:
    found = curves(make_records(9000, validate_every=1))
    for name, (steps, values) in found.items():
        max_points = MAX_MEAN_POINTS if name.startswith("mean/") else MAX_RAW_POINTS
        assert len(steps) == len(values) <= max_points, name
    assert max(found["grad_norm"][1]) == 80
    assert found["mean/loss"][0][-1] == 9000


def test_only_finite_numbers_have_points() -> None:
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


def stored_settings(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the settings of a run as training stores them."""
    return TrainSettings(**changes).model_dump(mode="json") | {"seed": seed, "data": "abc"}


def test_labels_are_settings_and_folders_if_not_unique() -> None:
    settings = [
        stored_settings(model=DiT(preset="L")),
        stored_settings(1),
        stored_settings(2, model=DiT(preset="S")),
        stored_settings(2),
        None,
        AutoencoderTrainSettings(steps=9, warmup_steps=0).model_dump(mode="json"),
    ]
    assert run_labels([f"run-{number}" for number in range(6)], settings, [900, 1200, 1200, 1200, 5, 9]) == [
        "dit L, 900 steps",
        "dit 6x192x6, 1,200 steps, run-1",
        "dit S, 1,200 steps",
        "dit 6x192x6, 1,200 steps, run-3",
        "run-4",
        "autoencoder small, 9 steps",
    ]


def test_settings_that_differ_are_listed() -> None:
    weighted = PlanSettings(weights={"*x1": 0.5})
    settings = [
        stored_settings(steps=900),
        None,
        stored_settings(1, lr=0.002, steps=1000),
        stored_settings(lr=0.002, batch=weighted),
    ]
    assert different_settings(settings) == [
        {"lr": "0.0001", "batch.weights.*x1": "–", "seed": "0"},
        {},
        {"lr": "0.002", "batch.weights.*x1": "–", "seed": "1"},
        {"lr": "0.002", "batch.weights.*x1": "0.5", "seed": "0"},
    ]
    assert different_settings([stored_settings()]) == [{}]
    long = stored_settings() | {"data": "x" * 999}
    assert len(different_settings([stored_settings(), long])[1]["data"]) == 80


def test_models_and_autoencoders_are_compared_separately() -> None:
    autoencoder = AutoencoderTrainSettings().model_dump(mode="json")
    assert different_settings([stored_settings(), autoencoder, autoencoder | {"preset": "large"}]) == [
        {},
        {"preset": "small"},
        {"preset": "large"},
    ]


def test_runs_have_labels_and_different_settings(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    for number, lr in enumerate((0.001, 0.002)):
        settings = stored_settings(number, lr=lr) | {"data": HOSTILE_TEXT}
        write_run(recipe.out_uri, f"run-{number}", make_records(10 + number), settings)
    write_run(recipe.out_uri, "run-older", make_records(5))
    found = {run["name"]: (run["label"], run["different_settings"]) for run in training_runs(recipe)["runs"]}
    assert found == {
        "run-0": ("dit 6x192x6, 10 steps", {"lr": "0.001", "seed": "0"}),
        "run-1": ("dit 6x192x6, 11 steps", {"lr": "0.002", "seed": "1"}),
        "run-older": ("run-older", {}),
    }


def test_previews_are_links_with_posters_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    captions = [HOSTILE_TEXT, "a lake"]
    write_run(recipe.out_uri, "run-abc", make_records(30), previews=dict.fromkeys((10, 20, 30), captions))
    write_failed_preview(recipe.out_uri, "run-abc", 25, "ValueError: no weights")
    previews = training_runs(recipe)["runs"][0]["previews"]
    assert [item["step"] for item in previews] == [10, 20, 25, 30]
    assert previews[2] == {"step": 25, "failed": "ValueError: no weights"}
    assert (previews[0]["video"], previews[0]["image"]) == (
        "run-abc/previews/step-000010.mp4",
        "run-abc/previews/step-000010.png",
    )
    assert (tmp_path / "out" / previews[0]["video"]).exists()
    assert HOSTILE_TEXT.startswith(previews[0]["captions"][0])
    with Image.open(io.BytesIO(base64.b64decode(previews[0]["poster"]))) as poster:
        assert (poster.format, poster.size) == ("JPEG", (160, 48))
    monkeypatch.setattr(runs, "MAX_POSTER_BYTES", 1)
    limited = training_runs(recipe)["runs"][0]["previews"]
    assert ["poster" in item for item in limited] == [True, False, False, False], "the others are links only"
    (tmp_path / "out" / "run-abc" / "previews" / "step-000010.png").unlink()
    assert training_runs(recipe)["runs"][0]["previews"][0]["poster"] == ""


@pytest.mark.slow
def test_the_newest_runs_and_some_previews_are_shown(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    for number in range(14):
        write_run(recipe.out_uri, f"run-{number:02d}", make_records(2))
        os.utime(tmp_path / "out" / f"run-{number:02d}" / "metrics.jsonl", (number, number))
    for step in range(1, 100):
        write_failed_preview(recipe.out_uri, "run-13", step, "late")
    found = training_runs(recipe)
    assert found["n_runs"] == 14
    assert [run["name"] for run in found["runs"]] == [f"run-{number:02d}" for number in range(13, 1, -1)]
    steps = [item["step"] for item in found["runs"][0]["previews"]]
    assert 12 < len(steps) <= runs.MAX_PREVIEWS
    assert steps[-1] == 99
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


def test_the_running_mean_is_over_the_window() -> None:
    points = [(step, float(step)) for step in range(1, 21)]
    smooth = running_mean(points)
    assert smooth[0] == (1, 1.0)
    assert smooth[-1][1] == pytest.approx(math.fsum(range(16, 21)) / 5)
