"""Settings of a training run: the `train` section of a recipe."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, StringConstraints, field_validator, model_validator

from cluster import storage, weight_files
from cluster.config import Settings
from cluster.plugins import PluginField
from training.adapters.settings import AdapterSettings
from training.conditioning import ConditioningRates
from training.data.plan import PlanSettings
from training.model import FOLDER as MODELS
from training.model import ModelSettings
from training.models.dit import DiT
from training.objective import FOLDER as OBJECTIVES
from training.objective import ObjectiveSettings
from training.objectives.flow_matching import FlowMatching
from training.sampling.mark_settings import MarkSettings
from training.tracking.trackers import TrackerName, check_trackers
from training.workers import (
    DEVICE_DESCRIPTION,
    MAX_FAILURES_DESCRIPTION,
    WORKERS_DESCRIPTION,
    Device,
    WorkerRequest,
    Workers,
    check_is_workers,
)


class PreviewSettings(Settings):
    """Settings of previews: samples during training, always of the same captions and from the same noise."""

    every: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        description="Steps between previews; the last step always makes one. 0 for never. auto is a multiple of 500 "
        "such that previews compute for at most 2% of the time.",
    )
    count: int = Field(4, ge=1, le=64, description="Samples per preview.")
    steps: int = Field(20, ge=1, le=1000, description="Solver steps per sample.")
    guidance: float = Field(5.0, ge=0, description="Classifier-free guidance scale; 1 is none, and halves the cost.")
    footage: str | None = Field(
        None,
        min_length=1,
        description="Folder of drawn footage, such as `worldloom demo-footage --world held-out` draws. With it, each "
        "preview also generates clips of its captions and records the shares that are as they say: score_background, "
        "score_colours, score_kinds, score_number.",
    )
    scored: int = Field(
        8, ge=1, description="Captions of `footage` that are scored; each costs as much as a sample of the preview."
    )

    marks: MarkSettings | None = Field(
        None, description="Marks of their files; by default those of the recipe's section `marks`."
    )

    @field_validator("footage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value and storage.absolute(value)


class TrainSettings(Settings):
    """Settings of training. Defaults without another source are those of published video diffusion transformers."""

    model: Annotated[ModelSettings, PluginField(MODELS, ModelSettings)] = Field(
        DiT(), description="Network to train, by name, with its settings."
    )
    objective: Annotated[ObjectiveSettings, PluginField(OBJECTIVES, ObjectiveSettings)] = Field(
        FlowMatching(), description="What the network predicts and how noise levels are drawn, by name."
    )
    init: str | None = Field(
        None,
        min_length=1,
        description="Weights to start from: the name of a shipped model, or the path of an export or a checkpoint. "
        "Its averaged weights are taken where name and shape are the same; steps, learning rate and averages start "
        "anew.",
    )
    adapter: AdapterSettings | None = Field(
        None,
        description="Low-rank adapter (LoRA) that is trained beside the weights of `init`, which stay as they are; "
        "{} for one with defaults. Without it all weights train.",
    )
    steps: int = Field(1000, ge=1, description="Optimizer steps of the whole run.")
    batch: PlanSettings = Field(PlanSettings(), description="How samples are grouped into steps.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="AdamW for all weights, or Muon for the matrices of the model's blocks and AdamW for all others; "
        "muon needs zero_stage 0.",
    )
    lr: float = Field(1e-4, gt=0, description="Peak learning rate; 1e-3 suits models of a few million parameters.")
    warmup_steps: int = Field(100, ge=0, description="Steps over which the learning rate rises from 0 to `lr`.")
    decay_steps: int = Field(
        0, ge=0, description="Last steps, over which the learning rate falls to 0; 0 keeps it constant."
    )
    decay: Literal["linear", "cosine"] = Field(
        "linear",
        description="Shape of the fall; for a cosine over the whole run, set `decay: cosine` and decay_steps to all "
        "steps after warmup_steps.",
    )
    frozen: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        (),
        description="Weights of `init` or of a published model that stay as they are: patterns of their names, such as "
        "blocks.0.*, in which * stands for any characters.",
    )
    lr_scale: dict[str, PositiveFloat] = Field(
        {},
        description="Factors of the learning rate by patterns of the names of weights, for example "
        "{'blocks.0.*': 0.1}; needs optimizer adamw.",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Weight decay of matrices; biases, gains and modulation tables have none."
    )
    betas: tuple[float, float] = Field((0.9, 0.99), description="Decay rates of AdamW's two moments.")
    clip_norm: float = Field(1.0, gt=0, description="Global norm above which gradients are scaled down to it.")
    skip_grad_norm: float | None = Field(
        None,
        gt=1,
        description="A step is skipped, and recorded, if its gradient norm is above this many times the median of the "
        "last 128 norms; 5 for example. Without it no step is skipped.",
    )
    ema_decay: float = Field(
        0.9999, ge=0, lt=1, description="Decay of the averaged weights; in step n it is at most (1 + n) / (10 + n)."
    )
    captions: dict[str, PositiveFloat] = Field(
        {},
        description="Weights of the kinds of captions, from which each sample's caption is drawn in each epoch. For "
        "example {dense: 0.95, source: 0.05}, as DALL-E 3 mixes 95% generated with 5% original ones. Without weights "
        "every sample has its main caption.",
    )
    caption_drop: float = Field(
        0.1, ge=0, le=1, description="Share of samples trained with the null caption, for classifier-free guidance."
    )
    conditioning: ConditioningRates = Field(
        ConditioningRates(), description="Shares of samples by the frames that condition the model."
    )
    device: Device = Field("auto", description=DEVICE_DESCRIPTION)
    workers: Workers = Field("auto", description=WORKERS_DESCRIPTION)
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Fewest processes to continue with while lost ones have no replacement; without it, training waits "
        "for `workers`.",
    )
    context_parallel: int = Field(
        1,
        ge=1,
        description="Workers that share the tokens of each sample, for samples too long for one. It must divide "
        "workers and the model's heads.",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="DeepSpeed ZeRO stage, which sets what is sharded over workers: nothing (0), the optimizer state "
        "(1), also gradients (2), also weights (3).",
    )
    cpu_offload: bool = Field(
        False,
        description="Keep the optimizer state, the fp32 weights and their averages in host memory; needs zero_stage "
        "1, 2 or 3.",
    )
    communication_bucket: int = Field(
        50_000_000,
        ge=1_000_000,
        description="Most elements that ZeRO reduces or gathers in one operation; smaller buckets overlap better with "
        "computation and take less memory.",
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="Arithmetic of the model; weights are kept and averaged in fp32 either way. tf32 is fp32 with the "
        "factors of matrix products rounded to 10 bits of mantissa, which GPUs multiply faster; for models in fp32 "
        "that do not need their last digits.",
    )
    max_failures: int = Field(2, ge=0, description=MAX_FAILURES_DESCRIPTION)
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints; the last step always writes one.")
    checkpoint_every_s: float = Field(
        1800.0, gt=0, description="Seconds after which a checkpoint is written, however few steps were taken."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Number of newest checkpoints that are kept.")
    validate_every: int = Field(
        500,
        ge=0,
        description="Steps between measurements of the validation loss, of the averaged weights; the last step always "
        "measures it. 0 for never.",
    )
    export: Literal["best", "last"] = Field(
        "best",
        description="Step whose model is exported for sampling: the one with the lowest validation loss, or the last. "
        "Without validation it is the last.",
    )
    previews: PreviewSettings = Field(PreviewSettings(), description="Samples during training.")
    log_every: int = Field(
        10, ge=1, description="Steps between points that trackers show; metrics.jsonl has every step."
    )
    trackers: tuple[TrackerName, ...] = Field(
        ("tensorboard",), description="Services that show curves during training."
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="Peak TFLOP/s of a device, for mfu and hfu; without it, that of the GPU's data sheet if known.",
    )

    _is_workers = field_validator("workers", mode="before")(check_is_workers)
    _absolute = field_validator("init")(weight_files.absolute_or_none)

    @model_validator(mode="after")
    def _unset_sections_are_the_models(self) -> TrainSettings:
        for key in ("objective", "conditioning"):
            if key not in self.model_fields_set:
                # Settings are frozen only after this.
                object.__setattr__(self, key, getattr(self.model, f"default_{key}")())
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision bf16 needs zero_stage 1, 2 or 3, which keep fp32 weights to update; "
                "set zero_stage: 1, or precision: fp32"
            )
        if self.optimizer == "muon" and self.zero_stage:
            raise ValueError(
                f"optimizer muon needs whole matrices, which zero_stage {self.zero_stage} cuts into a part per worker; "
                "set zero_stage: 0, or optimizer: adamw"
            )
        if self.adapter is not None:
            self.adapter.resolved(self.model)
            if self.init is None and not self.model.starts_from_itself:
                raise ValueError(
                    "adapter changes trained weights, and there are none; set init to a shipped model such as "
                    "drawn-world, or to an export or checkpoint, or remove adapter to train from nothing"
                )
        if self.zero_stage == 3 and self.adapter is not None and self.adapter.base_bits is not None:
            raise ValueError(
                "adapter.base_bits: zero_stage 3 divides weights among the workers, which quantised ones do not allow; "
                "set zero_stage: 2, or leave out base_bits"
            )
        if self.frozen and self.adapter is not None:
            raise ValueError("frozen: an adapter leaves all weights of its base as they are already; remove frozen")
        if self.frozen and self.init is None and not self.model.starts_from_itself:
            raise ValueError("frozen keeps trained weights as they are, and there are none; set init, or remove frozen")
        if self.lr_scale and self.optimizer == "muon":
            raise ValueError("lr_scale needs optimizer: adamw; set that, or remove lr_scale")
        asks_for_previews = self.previews.every != "auto" or self.previews.footage is not None
        if self.model.lacks_in_training and self.previews.every != 0 and asks_for_previews:
            raise ValueError(
                f"previews.every {self.previews.every}: previews need {self.model.lacks_in_training}; set "
                "previews: {every: 0}, and sample the export"
            )
        self.model.check_zero_stage(self.zero_stage)
        self.model.check_objective(self.objective)
        self.model.check_conditioning(self.conditioning)
        n_workers = None if self.workers == "auto" else self.workers
        if self.min_workers is not None and n_workers is not None and self.min_workers > n_workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {n_workers}; lower it, or raise workers")
        if n_workers is not None and n_workers % self.context_parallel:
            raise ValueError(
                f"workers {n_workers} cannot be divided into groups of context_parallel {self.context_parallel}; "
                f"set workers to a multiple of {self.context_parallel}, or context_parallel to a divisor of "
                f"{n_workers}"
            )
        if self.context_parallel > 1 and self.min_workers not in (None, n_workers):
            raise ValueError(
                f"min_workers {self.min_workers} lets any number of workers continue, which context_parallel "
                f"{self.context_parallel} may not divide; leave out min_workers, or set context_parallel: 1"
            )
        self.model.check_context_parallel(self.context_parallel)
        if self.cpu_offload and self.zero_stage == 0:
            raise ValueError(
                "cpu_offload needs zero_stage 1, 2 or 3, which shard the state to offload; "
                "set zero_stage: 2, or cpu_offload: false"
            )
        if self.warmup_steps + self.decay_steps > self.steps:
            phases = f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps}"
            raise ValueError(f"{phases} exceed the {self.steps} steps of the run; lower one of them or raise steps")
        check_trackers(self.trackers)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1)")
        return self

    @property
    def worker_request(self) -> WorkerRequest:
        """The number of workers that the settings ask for."""
        return WorkerRequest(self.workers, self.min_workers, self.context_parallel, device=self.device)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0.

        It rises linearly, stays constant, and falls such that it would reach 0 one step after the last.
        """
        rise = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        fall = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        factor = max(0.0, min(fall, 1.0))
        if self.decay == "cosine":
            factor = (1 - math.cos(math.pi * factor)) / 2
        return self.lr * min(rise, factor)
