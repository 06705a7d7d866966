"""Settings of a training run: the `train` section of a recipe."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from cluster.config import Settings
from cluster.plugins import PluginField
from training.conditioning import ConditioningRates
from training.data.plan import PlanSettings
from training.model import FOLDER as MODELS
from training.model import ModelSettings
from training.models.dit import DiT
from training.objective import FOLDER as OBJECTIVES
from training.objective import ObjectiveSettings
from training.objectives.flow_matching import FlowMatching
from training.tracking.trackers import Name as TrackerName
from training.tracking.trackers import check


class PreviewSettings(Settings):
    """Samples made while training goes on: always of the same captions, from the same noise."""

    every: int = Field(
        500, ge=0, description="Steps between previews; the last step always makes one. 0 for never, not even then."
    )
    count: int = Field(4, ge=1, le=64, description="Samples of a preview.")
    steps: int = Field(20, ge=1, le=1000, description="Evaluations of the velocity of each sample.")
    guidance: float = Field(5.0, ge=0, description="Classifier-free guidance scale; 1 is none, and halves the cost.")


class TrainSettings(Settings):
    """What to train and how. Defaults without another source are those of published video diffusion transformers."""

    model: Annotated[ModelSettings, PluginField(MODELS, ModelSettings)] = DiT()
    objective: Annotated[ObjectiveSettings, PluginField(OBJECTIVES, ObjectiveSettings)] = FlowMatching()
    steps: int = Field(1000, ge=1, description="Optimizer steps of the whole run.")
    batch: PlanSettings = Field(PlanSettings(), description="Which samples make up a step.")
    lr: float = Field(
        1e-4, gt=0, description="Peak learning rate of AdamW; 1e-3 suits models of a few million parameters."
    )
    warmup_steps: int = Field(100, ge=0, description="Steps over which the learning rate rises from 0 to `lr`.")
    decay_steps: int = Field(
        0, ge=0, description="Last steps, over which the learning rate falls to 0; 0 keeps it constant."
    )
    decay: Literal["linear", "cosine"] = Field(
        "linear",
        description="Shape of the fall; cosine over the whole run is `decay: cosine` with decay_steps all steps after warmup_steps.",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW weight decay of matrices; biases, gains and tables have none."
    )
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW moment decays.")
    clip_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this global norm.")
    skip_grad_norm: float | None = Field(
        None,
        gt=1,
        description="A step whose gradient norm is over so many times the median of the last 128 is skipped and recorded, say 5.",
    )
    ema_decay: float = Field(
        0.9999, ge=0, lt=1, description="Decay of the averaged weights; in step n it is at most (1 + n) / (10 + n)."
    )
    captions: dict[str, PositiveFloat] = Field(
        {},
        description="Weights of the kinds of captions a sample is trained with, drawn each epoch, say {dense: 0.95, source: 0.05}, "
        "as DALL-E 3 mixes 95% written with 5% found ones; without any, every sample has its main caption.",
    )
    caption_drop: float = Field(
        0.1, ge=0, le=1, description="Share of samples trained with the null caption, for classifier-free guidance."
    )
    conditioning: ConditioningRates = Field(
        ConditioningRates(), description="How often which latent frames are given to the model."
    )
    workers: int = Field(1, ge=1, description="Training processes; on GPUs, one GPU each.")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Fewest processes to go on with while lost ones have no replacement; without it, `workers` are waited for.",
    )
    context_parallel: int = Field(
        1,
        ge=1,
        description="Workers that share each sample's tokens, for samples too long for one; it divides workers and the model's heads.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="DeepSpeed ZeRO stage: what is sharded over workers (optimizer, gradients, weights)."
    )
    cpu_offload: bool = Field(
        False, description="Optimizer state, fp32 weights and their average in host memory; needs zero_stage 1, 2 or 3."
    )
    communication_bucket: int = Field(
        500_000_000,
        ge=1_000_000,
        description="Elements that ZeRO reduces or gathers at once; smaller ones overlap better and take less memory.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of the model; weights are kept and averaged in fp32 either way."
    )
    max_failures: int = Field(
        2, ge=0, description="How often lost workers are replaced and training goes on from the newest checkpoint."
    )
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints; the last step always writes one.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    validate_every: int = Field(500, ge=0, description="Steps between losses on the validation split; 0 for never.")
    previews: PreviewSettings = Field(PreviewSettings(), description="Samples made while training goes on.")
    log_every: int = Field(10, ge=1, description="Steps between points on trackers; metrics.jsonl has every step.")
    trackers: tuple[TrackerName, ...] = Field(
        ("tensorboard",), description="Where curves are shown while the run goes on."
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="TFLOP/s that a device could reach, for mfu and hfu; without it, that of the GPU's data sheet where it is known.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision bf16 needs zero_stage 1, 2 or 3, which keep fp32 weights to update; set zero_stage: 1, or precision: fp32"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is over workers {self.workers}; lower it, or raise workers"
            )
        if self.workers % self.context_parallel:
            raise ValueError(
                f"workers {self.workers} cannot be divided into groups of context_parallel {self.context_parallel}; "
                f"set workers to a multiple of {self.context_parallel}, or context_parallel to a divisor of {self.workers}"
            )
        if self.context_parallel > 1 and self.min_workers not in (None, self.workers):
            raise ValueError(
                f"min_workers {self.min_workers} lets any number of workers go on, which context_parallel {self.context_parallel} may not divide; "
                "leave out min_workers, or set context_parallel: 1"
            )
        self.model.check_context_parallel(self.context_parallel)
        if self.cpu_offload and self.zero_stage == 0:
            raise ValueError(
                "cpu_offload needs zero_stage 1, 2 or 3, which shard what it moves; set zero_stage: 2, or cpu_offload: false"
            )
        if self.warmup_steps + self.decay_steps > self.steps:
            phases = f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps}"
            raise ValueError(f"{phases} exceed the {self.steps} steps of the run; lower one of them or raise steps")
        check(self.trackers)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1)")
        return self

    def lr_at(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0: linear rise, plateau, fall that would reach 0 one step after the last."""
        rise = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        fall = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        left = max(0.0, min(fall, 1.0))
        if self.decay == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return self.lr * min(rise, left)
