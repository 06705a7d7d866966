"""The loss on the validation split, always with the same noise: two values differ by the weights alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from cluster.telemetry import log
from training.assembly import make_planner
from training.conditioning import ConditioningRates
from training.data.dataset import Dataset
from training.data.loader import Loader, LoaderSettings
from training.engine import Engine
from training.settings import TrainSettings
from training.step import StepConfig, make_noisy_batch, mse_losses, sample_key, stratified_quantiles
from training.tracking.breakdown import SampleLoss, breakdown, gather_losses, sample_losses

EPOCH = "validation"
"""Takes the place of the epoch in the key of each sample's noise."""


class Validation:
    """The validation split of a data set, and its loss."""

    def __init__(self, manifest_uri: str, settings: TrainSettings, config: StepConfig, engine: Engine) -> None:
        self._dataset = Dataset.open(manifest_uri, "val")
        self._settings, self._engine = settings, engine
        # Text to video with every caption, whatever mixture is trained.
        self._config = replace(config, caption_drop=0.0, conditioning=ConditioningRates(none=1.0))
        keys = [sample_key(EPOCH, uid) for uid in self._dataset.table["uid"].to_pylist()]
        self._quantiles = stratified_quantiles(config.seed, keys)
        if len(self._dataset) == 0 and engine.rank == 0:
            log.info("the validation split is empty, so only the training loss is recorded")

    def record(self) -> dict[str, float]:
        """Return `val_loss`, the mean over the split, and its parts (`breakdown`); empty if the split is.

        Every rank calls it.
        """
        if len(self._dataset) == 0:
            return {}
        engine = self._engine
        # Bucket weights are for training: here each sample counts once.
        plan = self._settings.batch.model_copy(update={"weights": {}})
        settings = self._settings.model_copy(update={"batch": plan, "conditioning": self._config.conditioning})
        planner = make_planner(self._dataset, settings, seed=0)
        losses: list[SampleLoss] = []
        ranks = LoaderSettings(engine.data_rank, engine.data_world_size)
        with Loader(self._dataset, planner, ranks) as loader, torch.no_grad():
            for _, batches in itertools.islice(loader, planner.steps_in(0)):
                for batch in batches:
                    noisy = make_noisy_batch(self._config, batch, self._quantiles, engine.device, EPOCH)
                    losses_B = mse_losses(engine.forward, noisy)
                    losses += sample_losses(self._config, batch, noisy.times, losses_B.tolist())
        return breakdown(gather_losses(losses, engine), "val_loss")
