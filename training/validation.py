"""The loss on the validation split, always with the same noise: two values differ by the weights alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pyarrow.compute as pc
import torch

from cluster.telemetry import log
from training.assembly import make_planner
from training.conditioning import ConditioningRates
from training.data.dataset import Dataset
from training.data.loader import Batch, Loader, LoaderSettings
from training.data.plan import GlobalStep, MicroBatch
from training.engine import Engine
from training.inputs import HostInputs, add_noise, assemble
from training.settings import TrainSettings
from training.step import StepConfig, mse_losses, stratified_quantiles
from training.tracking.breakdown import LossParts, weighted_sums
from training.tracking.step_records import PendingSum

EPOCH = "validation"
"""Takes the place of the epoch in the key of each sample's noise."""


class Validation:
    """The validation split of a data set, and its loss."""

    def __init__(self, manifest_uri: str, settings: TrainSettings, config: StepConfig, engine: Engine) -> None:
        self._dataset = Dataset.open(manifest_uri, "val")
        self._settings, self._engine = settings, engine
        # Text to video with every caption, whatever mixture is trained.
        self._config = replace(config, caption_drop=0.0, conditioning=ConditioningRates(none=1.0))
        self._quantiles = stratified_quantiles(config.seed, self._dataset.uid_hashes, EPOCH)
        self._parts = LossParts(pc.unique(self._dataset.table["bucket"]).to_pylist())
        if len(self._dataset) == 0 and engine.rank == 0:
            log.info("the validation split is empty, so only the training loss is recorded")

    def record(self) -> dict[str, float]:
        """Return `val_loss`, the mean over the split, and its parts (`LossParts`); empty if the split is.

        Every rank calls it.
        """
        if len(self._dataset) == 0:
            return {}
        engine = self._engine
        # Bucket weights are for training: here each sample counts once.
        plan = self._settings.batch.model_copy(update={"weights": {}})
        settings = self._settings.model_copy(update={"batch": plan, "conditioning": self._config.conditioning})
        planner = make_planner(self._dataset, settings, seed=0)
        ranks = LoaderSettings(engine.data_rank, engine.data_world_size)
        sums_P2 = torch.zeros(len(self._parts.names), 2, dtype=torch.float64, device=engine.device)
        with Loader(self._dataset, planner, ranks, self._assemble) as loader, torch.no_grad():
            for _, micro_batches in itertools.islice(loader, planner.steps_in(0)):
                for inputs in micro_batches:
                    noisy = add_noise(self._config, inputs, engine.device)
                    sums_P2 += weighted_sums(noisy.members_PB, mse_losses(engine.forward, noisy), noisy.weights_B)
        sums = PendingSum(engine, sums_P2.flatten()).read()
        return self._parts.record(sums.reshape(-1, 2).tolist(), "val_loss")

    def _assemble(
        self, planned: GlobalStep, micro_batches: Sequence[MicroBatch], batches: Sequence[Batch]
    ) -> list[HostInputs]:
        return [
            assemble(self._config, batch, self._quantiles[list(micro_batch.rows)], self._parts, EPOCH)
            for micro_batch, batch in zip(micro_batches, batches, strict=True)
        ]
