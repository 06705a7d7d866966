"""Trackers that show a run while it trains: TensorBoard, Weights & Biases and MLflow.

Rank 0 alone calls them, and `metrics.jsonl` does not depend on them.
"""

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

from cluster import storage
from cluster.arrays import UInt8Array
from cluster.telemetry import log

TrackerName = Literal["tensorboard", "wandb", "mlflow"]

TENSORBOARD_FOLDER, IDS_FILE = "tensorboard", "trackers.json"
"""Names in the folder of a run: its event files, and its ids at services, by which it resumes there as the same run."""
DEFAULT_PROJECT = "worldloom"
"""Project at Weights & Biases and experiment of MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME
names another."""
MLFLOW_MAX_PARAMS = 100
"""Most parameters in one request, by MLflow's REST reference."""


@dataclass(frozen=True)
class TrackedRun:
    """The description of a run that trackers receive when they are opened."""

    uri: str
    """Folder of the run."""
    start_step: int
    """Number of steps that were taken before."""
    settings: Mapping[str, Any]
    """Settings in JSON's types."""

    @property
    def name(self) -> str:
        """Name of the run's folder and its parent: `quickstart/run-0123456789ab`."""
        return "/".join(self.uri.rstrip("/").split("/")[-2:])

    def service_id(self, service: TrackerName) -> str | None:
        """Return the run's id at a service, or None if it was never opened there."""
        return self._service_ids().get(service)

    def save_service_id(self, service: TrackerName, run_id: str) -> None:
        """Store the run's id at a service in the run's folder."""
        ids = self._service_ids() | {service: run_id}
        storage.write_bytes(storage.join(self.uri, IDS_FILE), json.dumps(ids).encode())

    def _service_ids(self) -> dict[str, str]:
        uri = storage.join(self.uri, IDS_FILE)
        ids: dict[str, str] = storage.read_json(uri) if storage.exists(uri) else {}
        return ids


class Tracker(abc.ABC):
    """A service that shows one run; opening it begins the run there, or resumes it."""

    @abc.abstractmethod
    def __init__(self, run: TrackedRun) -> None: ...

    @abc.abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step, which counts from 1. Steps rise, and some come again after a restart."""

    @abc.abstractmethod
    def log_image(self, step: int, tag: str, image: UInt8Array) -> None:
        """Show an image `[H, W, 3]` of a step; called before the step's values are."""

    @abc.abstractmethod
    def finish(self, failed: bool) -> None:
        """End the run, at its last step or, if it `failed`, before."""


class TensorBoard(Tracker):
    """A tracker that writes event files to the run's folder, which must be local.

    When a run resumes, values that were logged after its checkpoint are purged.
    """

    def __init__(self, run: TrackedRun) -> None:
        # Importing it takes a third of a second, which readers of metrics need not wait for.
        from torch.utils.tensorboard import SummaryWriter

        folder = storage.local_path(run.uri) / TENSORBOARD_FOLDER
        self._writer = SummaryWriter(str(folder), purge_step=run.start_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        # Otherwise the writer flushes every two minutes.
        self._writer.flush()

    def log_image(self, step: int, tag: str, image: UInt8Array) -> None:
        self._writer.add_image(tag, image, step, dataformats="HWC")

    def finish(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A tracker for Weights & Biases. Its history cannot be undone, so steps that it has are not sent again."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        run_id = run.service_id("wandb")
        if run_id is None:
            run_id = secrets.token_hex(8)
            run.save_service_id("wandb", run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            id=run_id,
            name=run.name,
            config=dict(run.settings),
            # Some settings may change when a run resumes.
            allow_val_change=True,
            resume="allow",
            dir=str(storage.local_path(run.uri)) if storage.is_local(run.uri) else None,
        )
        self._first_step: int = self._run.step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first_step:
            self._run.log(dict(values), step=step)

    def log_image(self, step: int, tag: str, image: UInt8Array) -> None:
        from wandb import Image

        if step >= self._first_step:
            self._run.log({tag: Image(image)}, step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """A tracker for an MLflow server. Its points cannot be undone, so steps that it has are not sent again."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ValueError(
                "tracker mlflow: MLFLOW_TRACKING_URI is not set where rank 0 runs; set it to your server's, "
                "as http://host:5000"
            )
        self._client = MlflowClient(uri)
        run_id = run.service_id("mlflow")
        if run_id is not None:
            try:
                self._client.update_run(run_id, status="RUNNING")
                points = self._client.get_metric_history(run_id, "train/loss")
            except Exception as error:  # MLflow's stores raise errors of many types
                ids_uri = storage.join(run.uri, IDS_FILE)
                raise ValueError(
                    f"tracker mlflow: {uri} cannot resume run {run_id} of {ids_uri}: {error}; "
                    "remove its entry there to begin a new run"
                ) from error
            self._id, self._last_step = run_id, max((point.step for point in points), default=0)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id, self._last_step = self._client.create_run(experiment_id, run_name=run.name).info.run_id, 0
        run.save_service_id("mlflow", self._id)
        # Sent only here: MLflow's parameters cannot change, and some settings may when the run resumes.
        params = [Param(key, value) for key, value in flatten_settings(run.settings).items()]
        for start in range(0, len(params), MLFLOW_MAX_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + MLFLOW_MAX_PARAMS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if step > self._last_step:
            now_ms = int(time.time() * 1000)
            metrics = [Metric(tag, value, now_ms, step) for tag, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def log_image(self, step: int, tag: str, image: UInt8Array) -> None:
        if step > self._last_step:
            self._client.log_image(self._id, image, key=tag, step=step)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


TRACKERS: dict[TrackerName, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise `ValueError` for a tracker that is named twice, or whose package, of the same name, is not installed."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tracker {name} is named {names.count(name)} times; name it once")
        spec = find_spec(name)
        # wandb leaves a folder ./wandb behind, which looks like a package without an origin.
        if spec is None or spec.origin is None:
            extra = "" if name == "tensorboard" else f"[{name}]"
            raise ValueError(f"tracker {name} is not installed: pip install 'worldloom{extra}'")


def open_trackers(names: Sequence[TrackerName], run: TrackedRun) -> list[Tracker]:
    """Open the run at each of these services.

    Errors of a service that cannot be reached, or that does not know the run, are passed on.
    """
    if "tensorboard" in names and not storage.is_local(run.uri):
        log.info("%s is not local, and TensorBoard writes local files: metrics.jsonl has every step", run.uri)
        names = [name for name in names if name != "tensorboard"]
    return [TRACKERS[name](run) for name in names]


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level of texts, with keys such as `model.depth`."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flatten_settings(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
