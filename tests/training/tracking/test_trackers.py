"""Trackers: each is told the same, once, under the same name after a restart; with the real packages where they are installed."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.config import ConfigError, parse, parse_document
from tests.support.drawn import write_dataset
from training import run
from training.autoencoder_training.loop import train_autoencoder
from training.autoencoder_training.settings import AutoencoderTrainSettings, CropSettings
from training.checkpoints.run_folder import run_folder
from training.data.plan import PlanSettings
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.metrics import Metrics, note, read_metrics, tags
from training.tracking.trackers import IDS, check, flat

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


@dataclass
class WandbRun:
    """A run at Weights & Biases, as far as a tracker sees it."""

    options: dict[str, Any]
    step: int = 0
    history: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def log(self, values: dict[str, Any], step: int) -> None:
        assert step >= (self.history or [(0, {})])[-1][0], "W&B drops what comes late"
        if self.history and self.history[-1][0] == step:
            self.history[-1][1].update(values)
        else:
            self.history.append((step, values))
        self.step = step + 1

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, WandbRun]:
    """A stand-in for Weights & Biases: its runs by id."""
    runs: dict[str, WandbRun] = {}

    def init(**options: Any) -> WandbRun:
        assert options["resume"] == "allow"
        known = runs.setdefault(options["id"], WandbRun(options))
        known.options = options
        return known

    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="here")
    module.__dict__.update(init=init, Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class MlflowClient:
    """A stand-in for MLflow's client of a server, of which there is one."""

    runs: dict[str, SimpleNamespace]

    def __init__(self, uri: str) -> None:
        assert uri

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return (
            SimpleNamespace(experiment_id=name) if any(one.experiment == name for one in self.runs.values()) else None
        )

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        info = SimpleNamespace(run_id=f"id-{len(self.runs)}", run_name=run_name, status="RUNNING")
        self.runs[info.run_id] = SimpleNamespace(
            experiment=experiment_id, info=info, data=SimpleNamespace(params={}), points=[], pictures=[]
        )
        return self.runs[info.run_id]

    def get_run(self, run_id: str) -> SimpleNamespace:
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: list[Metric] | None = None, params: list[Param] | None = None) -> None:
        self.runs[run_id].points += metrics or []
        self.runs[run_id].data.params.update(params or [])

    def log_image(self, run_id: str, image: Any, key: str, step: int) -> None:
        self.runs[run_id].pictures.append((key, step, image))

    def list_artifacts(self, run_id: str, path: str) -> list[str]:
        assert path == "images"
        return [key for key, _, _ in self.runs[run_id].pictures]

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [point for point in self.runs[run_id].points if point.key == key]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of MLflow's own store of files where it is installed, of the stand-in elsewhere."""
    uri = f"file://{tmp_path_factory.mktemp('mlflow')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if find_spec("mlflow") is None:
        for name in ("mlflow", "mlflow.entities"):
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, origin="here")
            module.__dict__.update(MlflowClient=MlflowClient, Metric=Metric, Param=Param)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(MlflowClient, "runs", {}, raising=False)
    from mlflow import MlflowClient as Client

    # The store of files draws from it for one in ten names of experiments.
    state = random.getstate()
    yield Client(uri)
    random.setstate(state)


def tell(folder: Path, start_step: int, steps: range, *trackers: Any, **changes: Any) -> None:
    with Metrics(str(folder), start_step, 2, trackers, SETTINGS | changes) as metrics:
        for step in steps:
            metrics.add({"step": step, "loss": 1 / step, "tokens_per_s": 1.0})


def test_tags_are_grouped_and_are_numbers() -> None:
    assert tags(RECORD) == TAGS


def test_settings_are_told_in_one_level() -> None:
    assert flat(SETTINGS) == {
        "lr": "0.001",
        "model.name": "dit",
        "model.depth": "2",
        "betas": "[0.9, 0.99]",
        "skip_grad_norm": "null",
    }


def test_the_bar_says_mfu_where_it_is_known() -> None:
    assert note(RECORD) == "loss 1.5000, 1,234 tokens/s, MFU 25.0%"
    assert note({"loss": 1.5, "tokens_per_s": 2.0}) == "loss 1.5000, 2 tokens/s"


def test_tensorboard_shows_what_is_told_once(tmp_path: Path) -> None:
    with Metrics(str(tmp_path), 0, 2) as metrics:
        metrics.add(RECORD)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == pytest.approx(TAGS)
    tell(tmp_path / "again", 0, range(1, 9), "tensorboard")
    tell(tmp_path / "again", 4, range(5, 9), "tensorboard")
    events = EventAccumulator(str(tmp_path / "again" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]


def test_wandb_goes_on_with_the_same_run(
    wandb: dict[str, WandbRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run-12"
    tell(folder, 0, range(1, 8), "wandb")
    monkeypatch.setenv("WANDB_PROJECT", "films")
    tell(folder, 4, range(5, 11), "wandb", workers=2)
    ((name, known),) = wandb.items()
    assert json.loads((folder / IDS).read_text()) == {"wandb": name}
    assert [step for step, _ in known.history] == [2, 4, 6, 8, 10]
    assert known.history[0][1] == {"train/loss": 0.5, "speed/tokens_per_s": 1.0}
    assert known.options["name"] == f"{tmp_path.name}/run-12"
    assert known.options["project"] == "films"
    assert known.options["config"] == SETTINGS | {"workers": 2}
    assert known.exit_codes == [0, 0]
    assert not (folder / "tensorboard").exists()
    tell(tmp_path / "run-13", 0, range(1, 3), "wandb")
    assert len(wandb) == 2


def test_mlflow_goes_on_with_the_same_run(mlflow: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run-12"
    tell(folder, 0, range(1, 8), "mlflow")
    tell(folder, 4, range(5, 11), "mlflow", workers=2)
    (name,) = json.loads((folder / IDS).read_text()).values()
    assert [(point.step, point.value) for point in mlflow.get_metric_history(name, "train/loss")] == [
        (step, 1 / step) for step in (2, 4, 6, 8, 10)
    ]
    known = mlflow.get_run(name)
    assert (known.info.run_name, known.info.status) == (f"{tmp_path.name}/run-12", "FINISHED")
    assert dict(known.data.params) == flat(SETTINGS)
    tell(tmp_path / "run-13", 0, range(1, 3), "mlflow")
    assert mlflow.get_experiment_by_name("worldloom")


def test_pictures_are_shown_beside_the_values_of_their_step(
    wandb: dict[str, WandbRun], mlflow: Any, tmp_path: Path
) -> None:
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    with Metrics(str(tmp_path), 0, 2, ("tensorboard", "wandb", "mlflow")) as metrics:
        metrics.picture("previews", picture, 2)
        metrics.add({"step": 2, "loss": 1.0, "tokens_per_s": 1.0})
    (shown,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("previews")
    assert (shown.step, shown.height, shown.width) == (2, 4, 6)
    ids = json.loads((tmp_path / IDS).read_text())
    ((step, values),) = wandb[ids["wandb"]].history
    assert step == 2
    assert values.keys() == {"previews", "train/loss", "speed/tokens_per_s"}
    assert mlflow.list_artifacts(ids["mlflow"], "images")


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_run_that_breaks_off_failed(service: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    service_side = request.getfixturevalue(service)
    with pytest.raises(ZeroDivisionError):
        tell(tmp_path, 0, range(2, -1, -1), service)
    (name,) = json.loads((tmp_path / IDS).read_text()).values()
    assert (
        service_side[name].exit_codes == [1]
        if service == "wandb"
        else service_side.get_run(name).info.status == "FAILED"
    )


def test_mlflow_wants_to_know_its_server(mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is not set where rank 0 runs; set it to"):
        Metrics(str(tmp_path), 0, 1, ("mlflow",))


def test_a_run_that_mlflow_does_not_know_is_named(mlflow: Any, tmp_path: Path) -> None:
    unknown = "f" * 32
    (tmp_path / IDS).write_text(json.dumps({"mlflow": unknown}))
    with pytest.raises(
        ValueError, match=rf"cannot go on with run {unknown} of .*{IDS}: .*{unknown}.*; without its entry"
    ):
        tell(tmp_path, 0, range(1, 2), "mlflow")


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    wandb: dict[str, WandbRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: WandbRun, values: object, step: int) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(WandbRun, "log", fail)
    with caplog.at_level(logging.WARNING):
        tell(tmp_path, 0, range(1, 7), "wandb", "tensorboard")
    assert [record.message for record in caplog.records] == [
        "WeightsAndBiases is told no more of this run: ConnectionError: no route; metrics.jsonl goes on"
    ]
    assert len(read_metrics(str(tmp_path))) == 6
    assert [event.step for event in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")] == [
        2,
        4,
        6,
    ]


def test_the_autoencoder_is_told_of_like_the_model(wandb: dict[str, WandbRun], tmp_path: Path) -> None:
    """Every second step, and each that has a measurement; when the run goes on, as the same one."""
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
    (told,) = wandb.values()
    assert told.options["config"]["preset"] == "tiny"
    assert [step for step, _ in told.history] == [2, 3, 4]
    assert {"train/loss", "train/kl", "val/psnr_db", "val/ssim", "speed/step_s"} <= told.history[1][1].keys()
    assert told.exit_codes == [0, 0]
    with pytest.raises(ConfigError, match="wandb is there 2 times"):
        parse(AutoencoderTrainSettings, parse_document("trackers: [wandb, wandb]", "train"))


@pytest.mark.slow
def test_wandb_writes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell(tmp_path, 0, range(1, 8), "wandb")
    with Metrics(str(tmp_path), 4, 1, ("wandb",), SETTINGS | {"workers": 2}) as metrics:
        metrics.picture("previews", np.zeros((4, 6, 3), np.uint8), 5)
        metrics.add({"step": 5, "loss": 1.0, "tokens_per_s": 1.0})
    (name,) = json.loads((tmp_path / IDS).read_text()).values()
    parts = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    # Two, unless both began in the same second.
    assert parts
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/previews_*.png"))) == 1
    # Another process writes them, not always by the time that the run has ended.
    deadline_s = time.monotonic() + 30
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
        ("trackers: [tensorboard, tensorboard]", "tracker tensorboard is there 2 times; write it once"),
        ("trackers: [comet]", "trackers"),
        ("peak_tflops: 0", "peak_tflops"),
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_starts(
    section: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.tracking.trackers.find_spec", lambda name: find_spec(name) if name == "tensorboard" else None
    )
    with pytest.raises(ConfigError, match=message):
        parse(TrainSettings, parse_document(section, "recipe.yaml"))


def test_a_folder_that_wandb_left_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if find_spec("wandb").origin is None:  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="tracker wandb is not installed"):
            check(["wandb"])


@pytest.mark.slow
def test_how_a_run_is_watched_and_computed_may_change_when_it_goes_on(
    wandb: dict[str, WandbRun], tmp_path: Path
) -> None:
    """With activations computed again from step 4 on, and another tracker: the same folder, the same bits."""
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
    (known,) = wandb.values()
    assert [step for step, _ in known.history] == [5, 6, 7, 8]
    assert known.options["config"]["model"]["checkpointing"] == "blocks"
    shares = [known.history[0][1][f"speed/{name}"] for name in ("mfu", "hfu")]
    assert shares[1] == pytest.approx(shares[0] * 4 / 3)
