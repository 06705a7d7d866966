"""Where people watch a run: TensorBoard, Weights & Biases, MLflow. Rank 0 alone talks to them, and `metrics.jsonl` needs none of them."""

from __future__ import annotations

import abc
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cluster import storage
from cluster.telemetry import log

Name = Literal["tensorboard", "wandb", "mlflow"]

TENSORBOARD, IDS = "tensorboard", "trackers.json"
"""In a run's folder: event files, and what services call the run, so that it goes on as the same one there."""
PROJECT = "worldloom"
"""The project at Weights & Biases or experiment of MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says another."""
MLFLOW_MOST_PARAMS = 100
"""In one request, by MLflow's REST reference."""


@dataclass(frozen=True)
class Run:
    """What trackers are told of a run before its first step."""

    uri: str
    start_step: int
    """Steps that are done already."""
    settings: Mapping[str, Any]
    """As JSON has them."""

    @property
    def name(self) -> str:
        """The run's folder and the one it is in: `quickstart/run-0123456789ab`."""
        return "/".join(self.uri.rstrip("/").split("/")[-2:])

    def known_as(self, service: Name) -> str | None:
        """What a service calls the run; None before it has been there."""
        return self._ids().get(service)

    def remember(self, service: Name, name: str) -> None:
        """Keep what a service calls the run."""
        storage.write_bytes(storage.join(self.uri, IDS), json.dumps(self._ids() | {service: name}).encode())

    def _ids(self) -> dict[str, str]:
        uri = storage.join(self.uri, IDS)
        ids: dict[str, str] = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
        return ids


class Tracker(abc.ABC):
    """One service, told of one run; opening it begins the run there, or goes on with it."""

    @abc.abstractmethod
    def __init__(self, run: Run) -> None: ...

    @abc.abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step, counted from 1; steps come in order, and after a restart some come again."""

    @abc.abstractmethod
    def picture(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        """Take a picture `[H, W, 3]` of a step, before the step's values."""

    @abc.abstractmethod
    def finish(self, failed: bool) -> None:
        """The run ends, at its last step or, failed, before."""


class TensorBoard(Tracker):
    """Event files in the run's folder, which must be a local one. What was logged after the checkpoint is purged when a run goes on."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,
        )  # takes a third of a second, which whoever only reads metrics need not wait for

        self._writer = SummaryWriter(str(storage.local_path(run.uri) / TENSORBOARD), purge_step=run.start_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        # By itself it does so every two minutes.
        self._writer.flush()

    def picture(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        self._writer.add_image(tag, picture, step, dataformats="HWC")

    def finish(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run at Weights & Biases. Its history cannot be taken back, so steps that it has already are not sent again."""

    def __init__(self, run: Run) -> None:
        import wandb

        known = run.known_as("wandb")
        if known is None:
            known = secrets.token_hex(8)
            run.remember("wandb", known)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=known,
            name=run.name,
            config=dict(run.settings),
            # Settings that are free to change may have.
            allow_val_change=True,
            resume="allow",
            dir=str(storage.local_path(run.uri)) if storage.is_local(run.uri) else None,
        )
        self._first_step: int = self._run.step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first_step:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        from wandb import Image

        if step >= self._first_step:
            self._run.log({tag: Image(picture)}, step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """A run of an MLflow server. Its points cannot be taken back, so steps that it has already are not sent again."""

    def __init__(self, run: Run) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ValueError(
                "tracker mlflow: MLFLOW_TRACKING_URI is not set where rank 0 runs; set it to your server's, as http://host:5000"
            )
        self._client = MlflowClient(uri)
        known = run.known_as("mlflow")
        if known is not None:
            try:
                self._client.update_run(known, status="RUNNING")
                points = self._client.get_metric_history(known, "train/loss")
            except Exception as error:  # whatever its store raises
                named = f"run {known} of {storage.join(run.uri, IDS)}"
                raise ValueError(
                    f"tracker mlflow: {uri} cannot go on with {named}: {error}; without its entry there it is a new one"
                ) from error
            self._id, self._last_step = known, max((point.step for point in points), default=0)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id, self._last_step = self._client.create_run(experiment_id, run_name=run.name).info.run_id, 0
        run.remember("mlflow", self._id)
        # Once: they cannot be changed, and those that are free to change may be others when the run goes on.
        params = [Param(key, value) for key, value in flat(run.settings).items()]
        for start in range(0, len(params), MLFLOW_MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + MLFLOW_MOST_PARAMS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if step > self._last_step:
            now_ms = int(time.time() * 1000)
            self._client.log_batch(
                self._id, metrics=[Metric(tag, value, now_ms, step) for tag, value in values.items()]
            )

    def picture(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        if step > self._last_step:
            self._client.log_image(self._id, picture, key=tag, step=step)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


TRACKERS: dict[Name, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def check(names: Sequence[Name]) -> None:
    """Raise `ValueError` for a tracker that is named twice, or whose package, of the same name, is not installed."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tracker {name} is there {names.count(name)} times; write it once")
        spec = find_spec(name)
        # A folder ./wandb, which wandb leaves behind, passes for a package without origin.
        if spec is None or spec.origin is None:
            extra = "" if name == "tensorboard" else f"[{name}]"
            raise ValueError(f"tracker {name} is not installed: pip install 'worldloom{extra}'")


def open_trackers(names: Sequence[Name], run: Run) -> list[Tracker]:
    """Begin the run at each of these. Raises what a service raises that cannot be reached or does not know the run."""
    if "tensorboard" in names and not storage.is_local(run.uri):
        log.info("%s is not local, and TensorBoard writes local files: metrics.jsonl has every step", run.uri)
        names = [name for name in names if name != "tensorboard"]
    return [TRACKERS[name](run) for name in names]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of texts: `model.depth`."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found
