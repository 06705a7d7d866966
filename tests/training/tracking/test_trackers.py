"""Trackers: each gets every value once, and the same run after a restart; real packages are used if installed."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.config import ConfigError, parse, parse_document
from tests.support.drawn import write_dataset
from tests.support.tracker_services import WandbRun, mlflow_modules, wandb_module
from training import run
from training.autoencoder_training.loop import train_autoencoder
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings
from training.checkpoints.run_folder import run_folder
from training.data.plan import PlanSettings
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.metrics import Metrics, progress_text, read_metrics, tracker_values
from training.tracking.trackers import IDS_FILE, check_trackers, flatten_settings

RECORD = {
    "step": 3,
    "loss": 1.5,
    "loss_time/0.3": 1.25,
    "loss_bucket/32px_5f": 1.0,
    "lr": 0.001,
    "mfu": 0.25,
    "tokens_per_s": 1234.5,
    "val_loss": 2.0,
    "val_loss_bucket/32px_5f": 3.0,
    "what": "text",
}
TAGS = {
    "train/loss": 1.5,
    "train/loss_time/0.3": 1.25,
    "train/loss_bucket/32px_5f": 1.0,
    "train/lr": 0.001,
    "speed/mfu": 0.25,
    "speed/tokens_per_s": 1234.5,
    "val/loss": 2.0,
    "val/loss_bucket/32px_5f": 3.0,
}
SETTINGS = {"lr": 0.001, "model": {"name": "dit", "depth": 2}, "betas": [0.9, 0.99], "skip_grad_norm": None}


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, WandbRun]:
    """Return the runs of a stand-in for Weights & Biases, by id."""
    runs: dict[str, WandbRun] = {}
    monkeypatch.setitem(sys.modules, "wandb", wandb_module(runs))
    return runs


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield a client of MLflow's file store if MLflow is installed, and otherwise the stand-in."""
    uri = f"file://{tmp_path_factory.mktemp('mlflow')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if find_spec("mlflow") is None:
        for name, module in mlflow_modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    from mlflow import MlflowClient

    # For one in ten names of experiments, MLflow's file store draws random numbers.
    state = random.getstate()
    yield MlflowClient(uri)
    random.setstate(state)


def record_steps(folder: Path, start_step: int, steps: range, *trackers: Any, **changes: Any) -> None:
    """Record steps of a run that starts after `start_step`, with every second one sent to the trackers."""
    with Metrics(str(folder), start_step, 2, trackers, SETTINGS | changes) as metrics:
        for step in steps:
            metrics.add({"step": step, "loss": 1 / step, "tokens_per_s": 1.0})


def test_tracker_values_are_numbers_by_group() -> None:
    assert tracker_values(RECORD) == TAGS


def test_settings_are_flattened_to_one_level() -> None:
    assert flatten_settings(SETTINGS) == {
        "lr": "0.001",
        "model.name": "dit",
        "model.depth": "2",
        "betas": "[0.9, 0.99]",
        "skip_grad_norm": "null",
    }


def test_the_progress_bar_has_mfu_if_it_is_known() -> None:
    assert progress_text(RECORD) == "loss 1.5000, 1,234 tokens/s, MFU 25.0%"
    record = {"loss": 1.5, "tokens_per_s": 2.0}
    assert progress_text(record) == "loss 1.5000, 2 tokens/s"
    assert progress_text(record, {10: 1.25}) == "loss 1.5000, validation 1.2500, 2 tokens/s"
    overfitted = "loss 1.5000, validation 1.5000 (best 1.2500 at step 10), 2 tokens/s"
    assert progress_text(record, {10: 1.25, 20: 1.5}) == overfitted


def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    with Metrics(str(tmp_path), 0, 2) as metrics:
        metrics.add(RECORD)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == pytest.approx(TAGS)
    record_steps(tmp_path / "again", 0, range(1, 9), "tensorboard")
    record_steps(tmp_path / "again", 4, range(5, 9), "tensorboard")
    events = EventAccumulator(str(tmp_path / "again" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]


def test_wandb_resumes_the_same_run(
    wandb: dict[str, WandbRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run-12"
    record_steps(folder, 0, range(1, 8), "wandb")
    monkeypatch.setenv("WANDB_PROJECT", "films")
    record_steps(folder, 4, range(5, 11), "wandb", workers=2)
    ((name, tracked),) = wandb.items()
    assert json.loads((folder / IDS_FILE).read_text()) == {"wandb": name}
    assert [step for step, _ in tracked.history] == [2, 4, 6, 8, 10]
    assert tracked.history[0][1] == {"train/loss": 0.5, "speed/tokens_per_s": 1.0}
    assert tracked.options["name"] == f"{tmp_path.name}/run-12"
    assert tracked.options["project"] == "films"
    assert tracked.options["config"] == SETTINGS | {"workers": 2}
    assert tracked.exit_codes == [0, 0]
    assert not (folder / "tensorboard").exists()
    record_steps(tmp_path / "run-13", 0, range(1, 3), "wandb")
    assert len(wandb) == 2


def test_mlflow_resumes_the_same_run(mlflow: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run-12"
    record_steps(folder, 0, range(1, 8), "mlflow")
    record_steps(folder, 4, range(5, 11), "mlflow", workers=2)
    (name,) = json.loads((folder / IDS_FILE).read_text()).values()
    assert [(point.step, point.value) for point in mlflow.get_metric_history(name, "train/loss")] == [
        (step, 1 / step) for step in (2, 4, 6, 8, 10)
    ]
    tracked = mlflow.get_run(name)
    assert (tracked.info.run_name, tracked.info.status) == (f"{tmp_path.name}/run-12", "FINISHED")
    assert dict(tracked.data.params) == flatten_settings(SETTINGS)
    record_steps(tmp_path / "run-13", 0, range(1, 3), "mlflow")
    assert mlflow.get_experiment_by_name("worldloom")


def test_images_are_logged_with_the_values_of_their_step(
    wandb: dict[str, WandbRun], mlflow: Any, tmp_path: Path
) -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    with Metrics(str(tmp_path), 0, 2, ("tensorboard", "wandb", "mlflow")) as metrics:
        metrics.add_image("previews", image, 2)
        metrics.add({"step": 2, "loss": 1.0, "tokens_per_s": 1.0})
    (shown,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("previews")
    assert (shown.step, shown.height, shown.width) == (2, 4, 6)
    ids = json.loads((tmp_path / IDS_FILE).read_text())
    ((step, values),) = wandb[ids["wandb"]].history
    assert step == 2
    assert values.keys() == {"previews", "train/loss", "speed/tokens_per_s"}
    assert mlflow.list_artifacts(ids["mlflow"], "images")


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_run_that_ends_with_an_error_is_failed(service: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    service_side = request.getfixturevalue(service)
    with pytest.raises(ZeroDivisionError):
        record_steps(tmp_path, 0, range(2, -1, -1), service)
    (name,) = json.loads((tmp_path / IDS_FILE).read_text()).values()
    assert (
        service_side[name].exit_codes == [1]
        if service == "wandb"
        else service_side.get_run(name).info.status == "FAILED"
    )


def test_mlflow_needs_the_address_of_its_server(mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is not set where rank 0 runs; set it to"):
        Metrics(str(tmp_path), 0, 1, ("mlflow",))


def test_a_run_unknown_to_mlflow_is_named(mlflow: Any, tmp_path: Path) -> None:
    unknown = "f" * 32
    (tmp_path / IDS_FILE).write_text(json.dumps({"mlflow": unknown}))
    with pytest.raises(
        ValueError, match=rf"cannot resume run {unknown} of .*{IDS_FILE}: .*{unknown}.*; remove its entry"
    ):
        record_steps(tmp_path, 0, range(1, 2), "mlflow")


def test_a_failing_tracker_does_not_stop_training(
    wandb: dict[str, WandbRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: WandbRun, values: object, step: int) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(WandbRun, "log", fail)
    with caplog.at_level(logging.WARNING):
        record_steps(tmp_path, 0, range(1, 7), "wandb", "tensorboard")
    assert [record.message for record in caplog.records] == [
        "WeightsAndBiases gets no more records of this run: ConnectionError: no route; metrics.jsonl continues"
    ]
    assert len(read_metrics(str(tmp_path))) == 6
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]


@pytest.mark.slow
def test_autoencoder_training_is_tracked_too(wandb: dict[str, WandbRun], tmp_path: Path) -> None:
    """Trackers get every second step, steps with a validation, and the same run after a restart."""
    data = tmp_path / "clips"
    for number, split in enumerate(("train", "val")):
        (data / split).mkdir(parents=True)
        np.save(data / split / "0.npy", np.random.default_rng(number).integers(0, 256, (6, 24, 24, 3), np.uint8))
    settings = AutoencoderTrainSettings(
        preset="tiny",
        steps=3,
        crops=(CropSettings(size=16, frames=5, batch=1),),
        strides=(1,),
        warmup_steps=1,
        validate_every=3,
        log_every=2,
        trackers=("wandb",),
    )
    run_uri = str(tmp_path / "run")
    for steps in (3, 4):
        train_autoencoder(settings.model_copy(update={"steps": steps}), data, run_uri, 0, torch.device("cpu"))
    (tracked,) = wandb.values()
    assert tracked.options["config"]["preset"] == "tiny"
    assert [step for step, _ in tracked.history] == [2, 3, 4]
    assert {"train/loss", "train/kl", "val/psnr_db", "val/ssim", "speed/step_s"} <= tracked.history[1][1].keys()
    assert tracked.exit_codes == [0, 0]
    with pytest.raises(ConfigError, match="wandb is named 2 times"):
        parse(AutoencoderTrainSettings, parse_document("trackers: [wandb, wandb]", "train"))


@pytest.mark.slow
def test_wandb_writes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    record_steps(tmp_path, 0, range(1, 8), "wandb")
    with Metrics(str(tmp_path), 4, 1, ("wandb",), SETTINGS | {"workers": 2}) as metrics:
        metrics.add_image("previews", np.zeros((4, 6, 3), np.uint8), 5)
        metrics.add({"step": 5, "loss": 1.0, "tokens_per_s": 1.0})
    (name,) = json.loads((tmp_path / IDS_FILE).read_text()).values()
    parts = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    # There are two files, unless both parts began in the same second.
    assert parts
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/previews_*.png"))) == 1
    # Another process writes them, and may finish after the run has ended.
    deadline_s = time.monotonic() + 120
    while not all(b"train/loss" in part.read_bytes() for part in parts):
        assert time.monotonic() < deadline_s, parts
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "trackers: [tensorboard, wandb]",
            r"recipe.yaml:1: tracker wandb is not installed: pip install 'worldloom\[wandb\]'",
        ),
        ("trackers: [mlflow]", r"tracker mlflow is not installed: pip install 'worldloom\[mlflow\]'"),
        ("trackers: [tensorboard, tensorboard]", "tracker tensorboard is named 2 times; name it once"),
        ("trackers: [comet]", "trackers"),
        ("peak_tflops: 0", "peak_tflops"),
    ],
)
def test_unusable_trackers_are_refused_before_training(
    section: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.tracking.trackers.find_spec", lambda name: find_spec(name) if name == "tensorboard" else None
    )
    with pytest.raises(ConfigError, match=message):
        parse(TrainSettings, parse_document(section, "recipe.yaml"))


def test_a_folder_named_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if find_spec("wandb").origin is None:  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="tracker wandb is not installed"):
            check_trackers(["wandb"])


@pytest.mark.slow
def test_trackers_and_checkpointing_may_change_on_resume(wandb: dict[str, WandbRun], tmp_path: Path) -> None:
    """With activation checkpointing and another tracker from step 4 on, a run has the same folder and the same bits."""
    manifest = write_dataset(tmp_path / "data", [(32, 32, 1, 8)], n_val=0)
    settings = TrainSettings(
        model=DiT(depth=1, dim=32, heads=2),
        steps=4,
        batch=PlanSettings(tokens_per_step=60),
        warmup_steps=1,
        validate_every=0,
        log_every=1,
    )
    changes: dict[str, Any] = {"steps": 8, "trackers": ("wandb",), "peak_tflops": 1.0}
    other = settings.model_copy(
        update=changes | {"model": settings.model.model_copy(update={"checkpointing": "blocks"})}
    )
    assert run_folder(settings, manifest, "out", 0) == run_folder(other, manifest, "out", 0)
    whole = run.train(settings.model_copy(update={"steps": 8}), manifest, str(tmp_path / "whole"), distributed=False)
    run.train(settings, manifest, str(tmp_path / "changed"), distributed=False)
    changed = run.train(other, manifest, str(tmp_path / "changed"), distributed=False)
    assert changed.losses == whole.losses
    (tracked,) = wandb.values()
    assert [step for step, _ in tracked.history] == [5, 6, 7, 8]
    assert tracked.options["config"]["model"]["checkpointing"] == "blocks"
    shares = [tracked.history[0][1][f"speed/{name}"] for name in ("mfu", "hfu")]
    assert shares[1] == pytest.approx(shares[0] * 4 / 3)
