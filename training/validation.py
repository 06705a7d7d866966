"""Loss on the validation split, with the same noise every time, so that two values differ by the weights alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from cluster.telemetry import log
from training.conditioning import ConditioningRates
from training.data.dataset import Dataset
from training.data.loader import Loader, LoaderSettings
from training.engine import Engine
from training.assembly import make_planner
from training.settings import TrainSettings
from training.step import StepConfig, key, losses, make_noisy_batch, stratified_quantiles
from training.tracking.breakdown import Outcome, breakdown, outcomes, shared

EPOCH = "validation"
"""Takes the epoch's place in the key of each sample's noise."""


class Validation:
    """The validation split of a data set, measured as often as asked."""

    def __init__(self, manifest_uri: str, settings: TrainSettings, task: StepConfig, engine: Engine) -> None:
        self._dataset = Dataset.open(manifest_uri, "val")
        self._settings, self._engine = settings, engine
        # Captions are kept and no frame is given: the plain task, whatever the mixture that is trained.
        self._task = replace(task, caption_drop=0.0, conditioning=ConditioningRates(none=1.0))
        self._quantiles = stratified_quantiles(task.seed, [key(EPOCH, uid) for uid in self._dataset.table["uid"].to_pylist()])
        if len(self._dataset) == 0 and engine.rank == 0:
            log.info("no sample is in the validation split, so only the training loss is recorded")

    def record(self) -> dict[str, float]:
        """`val_loss`, the mean over the samples of the split, and its parts as `training.tracking.breakdown` names them; empty when the split is."""
        if len(self._dataset) == 0:
            return {}
        engine = self._engine
        # Weights of buckets are for training: here each sample counts once.
        plan = self._settings.batch.model_copy(update={"weights": {}})
        settings = self._settings.model_copy(update={"batch": plan, "conditioning": self._task.conditioning})
        planner = make_planner(self._dataset, settings, seed=0)
        done: list[Outcome] = []
        ranks = LoaderSettings(engine.data_rank, engine.data_world_size)
        with Loader(self._dataset, planner, ranks) as loader, torch.no_grad():
            for _, batches in itertools.islice(loader, planner.steps_in(0)):
                for batch in batches:
                    inputs = make_noisy_batch(self._task, batch, self._quantiles, engine.device, EPOCH)
                    done += outcomes(self._task, batch, inputs.times, losses(engine.forward, inputs).tolist())
        return breakdown(shared(done, engine), "val_loss")
