"""Stand-ins for Weights & Biases and MLflow, as far as trackers use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple


@dataclass
class WandbRun:
    """A stand-in for a run at Weights & Biases, as far as a tracker uses it."""

    options: dict[str, Any]
    step: int = 0
    history: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def log(self, values: dict[str, Any], step: int) -> None:
        assert step >= (self.history or [(0, {})])[-1][0], "W&B drops steps that come late"
        if self.history and self.history[-1][0] == step:
            self.history[-1][1].update(values)
        else:
            self.history.append((step, values))
        self.step = step + 1

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def wandb_module(runs: dict[str, WandbRun]) -> ModuleType:
    """Return a module `wandb` whose runs are those of `runs`, by id."""

    def init(**options: Any) -> WandbRun:
        assert options["resume"] == "allow"
        run = runs.setdefault(options["id"], WandbRun(options))
        run.options = options
        return run

    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="here")
    module.__dict__.update(init=init, Image=lambda image: image)
    return module


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class MlflowClient:
    """A stand-in for MLflow's client of a server; all clients share one."""

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
            experiment=experiment_id, info=info, data=SimpleNamespace(params={}), points=[], images=[]
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
        self.runs[run_id].images.append((key, step, image))

    def list_artifacts(self, run_id: str, path: str) -> list[str]:
        assert path == "images"
        return [key for key, _, _ in self.runs[run_id].images]

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [point for point in self.runs[run_id].points if point.key == key]


def mlflow_modules() -> dict[str, ModuleType]:
    """Return the modules `mlflow` and `mlflow.entities`, with a server that has no runs yet."""
    MlflowClient.runs = {}
    modules = {}
    for name in ("mlflow", "mlflow.entities"):
        modules[name] = ModuleType(name)
        modules[name].__spec__ = ModuleSpec(name, None, origin="here")
        modules[name].__dict__.update(MlflowClient=MlflowClient, Metric=Metric, Param=Param)
    return modules
