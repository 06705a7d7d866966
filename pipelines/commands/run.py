"""A whole recipe: run_segments, train, sample, in that order, each from where it stands."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

from captioning.upsample import Upsampler
from cluster import storage
from cluster.config import ConfigError
from cluster.ray_settings import RaySettings
from cluster.resources import Resources
from cluster.telemetry import log, progress
from pipelines import inline
from pipelines.commands.sample import check_pictures, read_picture
from pipelines.curation import Curation, run_segments, inspect
from pipelines.engine.executor import Executor
from pipelines.dataset import splits
from pipelines.dataset.build import Dataset, build_dataset, training_captions
from pipelines.engine.shuffle import Rows
from pipelines.engine.step import TableFunction
from pipelines.engine.worker import Job
from pipelines.forgetting.request import check_finished, go_on
from pipelines.ledger import Account, ledger
from pipelines.recipe import Recipe, resolved
from pipelines.steps.encode import Encode
from training.checkpoints.run_folder import run_folder
from training.result import TrainResult, result
from training.sampling.tasks import sample
from training.settings import TrainSettings

Part = Literal["curate", "train", "sample"]


@dataclass(frozen=True)
class Outcome:
    """What a run came to; parts that were not asked for are None or empty."""

    curation: Curation | None = None
    accounts: tuple[Account, ...] = ()
    dataset: Dataset | None = None
    training: TrainResult | None = None
    samples: tuple[str, ...] = ()
    report: str | None = None
    seconds: float = 0.0


def run_recipe(recipe: Recipe, only: Part | None = None, in_process: bool = False) -> Outcome:
    """Run a recipe, or one part of it. `in_process` uses neither Ray nor DeepSpeed: slower, and easy to debug.

    Raises `ConfigError` when the part asked for lacks what an earlier part makes.
    """
    start_s = time.monotonic()
    check_finished(recipe.out_uri)
    if only in (None, "sample"):
        check_pictures(recipe.sample)
    if only != "sample":
        # What is sampled of the moment is not what the run is.
        storage.write_bytes(storage.join(recipe.out_uri, "run.yaml"), resolved(recipe).encode())
    with contextlib.ExitStack() as stack:
        ray = _LazyRay(recipe.ray, stack)
        executor: Executor = inline if in_process else ray
        curation = run_segments(recipe, engine) if only in (None, "curate") else inspect(recipe)
        if not curation.complete:
            raise ConfigError(
                f"{recipe.name}: curation is not complete; run `worldloom run` without --only, or with --only run_segments, first"
            )
        accounts = tuple(ledger(curation))
        storage.write_bytes(
            storage.join(recipe.out_uri, "ledger.json"),
            json.dumps([asdict(account) for account in accounts], indent=1).encode(),
        )
        dataset = None
        if isinstance(recipe.curate[-1], Encode):
            dataset = build_dataset(recipe, curation, engine)
        else:
            splits.store(recipe, curation)
        # Before training too, so that there is something to look at while it lasts.
        report = _report(recipe, curation) if only != "sample" else None
        training = None
        settings = train_settings(recipe, in_process)
        if settings and dataset and only != "curate":
            go_on(
                recipe,
                curation.sources["uid"].to_pylist(),
                run_folder(settings, dataset.manifest_uri, recipe.out_uri, recipe.seed),
            )
        if settings and dataset and only in (None, "train"):
            training = result(settings, run_folder(settings, dataset.manifest_uri, recipe.out_uri, recipe.seed))
            if training is None:
                from training.run import train  # imports Ray Train, which takes half a second

                if not in_process:
                    ray.connect()
                training = train(
                    settings, dataset.manifest_uri, recipe.out_uri, seed=recipe.seed, distributed=not in_process
                )
        samples = tuple(_samples(recipe, settings, dataset)) if only in (None, "sample") else ()
    if only != "sample" and (training or samples):
        report = _report(recipe, curation)
    return Outcome(curation, accounts, dataset, training, samples, report, time.monotonic() - start_s)


def _report(recipe: Recipe, curation: Curation) -> str | None:
    """Write the report; what is wrong with it is said, and does not undo a run that is done."""
    from pipelines.report.page import write_report  # the chart library is read for a report alone

    try:
        return write_report(recipe, curation).uri
    except Exception as error:  # whatever it is, the tables are whole and the error is in the log
        log.error(
            f"{recipe.out_uri}: the report could not be written: {type(error).__name__}: {error}; `worldloom report` tries again"
        )
        return None


class _LazyRay:
    """The engine that connects to Ray when the first piece of work needs it, so that a run with nothing to do does not wait for it."""

    def __init__(self, settings: RaySettings, stack: contextlib.ExitStack) -> None:
        self._settings = settings
        self._stack = stack

    def connect(self) -> None:
        from cluster.session import connected  # imports Ray, which takes a third of a second

        self._stack.enter_context(connected(self._settings))

    def run_tasks(self, work: Job, orders: list[pa.Table]) -> Iterator[pa.Table]:
        return self._engine().run_tasks(work, orders)

    def rows(self, orders: list[pa.Table], columns: list[str]) -> Rows:
        return self._engine().rows(orders, columns)

    def map_tables(
        self, load: Callable[[], TableFunction], wanted: list[pa.Table], resources: Resources
    ) -> Iterator[pa.Table]:
        return self._engine().map_tables(load, wanted, resources)

    def _engine(self) -> Executor:
        from pipelines import (
            run,
        )  # Ray Data takes half a second to import, which a run with nothing to do need not wait for

        self.connect()
        return run


def train_settings(recipe: Recipe, in_process: bool) -> TrainSettings | None:
    """The recipe's training, or the same on one worker where there is no Ray."""
    if recipe.train is None or not in_process:
        return recipe.train
    return recipe.train.model_copy(update={"workers": 1, "context_parallel": 1, "zero_stage": 0})


def _samples(recipe: Recipe, settings: TrainSettings | None, dataset: Dataset | None) -> Iterator[str]:
    if not recipe.sample:
        return
    if settings is None or dataset is None:
        raise ConfigError(f"{recipe.name}: sample needs the sections that make a model: an encode step and train")
    trained = result(settings, run_folder(settings, dataset.manifest_uri, recipe.out_uri, recipe.seed))
    if trained is None:
        raise ConfigError(
            f"{recipe.name}: no model is trained to step {settings.steps} yet; run the recipe without --only, or with --only train"
        )
    manifest_uri = dataset.manifest_uri
    upsampler = Upsampler(recipe.upsample, lambda: training_captions(manifest_uri))
    with progress("sampling", len(recipe.sample)) as bar:
        for wanted in recipe.sample:
            yield sample(wanted, trained.export_uri, storage.join(recipe.out_uri, "samples"), upsampler, read_picture)
            bar.advance()
