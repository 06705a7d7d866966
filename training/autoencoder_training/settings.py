"""Settings of the training of an autoencoder: the `train` section of its recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cluster.config import Settings
from training.autoencoders._linear_weights import SPACE_FACTOR, TIME_FACTOR
from training.settings import TrainSettings
from training.tracking.trackers import Name as TrackerName


class CropSettings(Settings):
    """What is cut out of clips at random for one kind of step."""

    size: int = Field(128, ge=2 * SPACE_FACTOR, multiple_of=SPACE_FACTOR, description="Side of the square, in pixels.")
    frames: int = Field(17, ge=1, description="Frames, 1 + a multiple of 4; 1 takes pictures.")
    batch: int = Field(8, ge=1, description="Crops a step, over all workers.")
    share: float = Field(1.0, gt=0, description="How often steps are of this kind, next to the others' shares.")

    @model_validator(mode="after")
    def _whole_groups(self) -> CropSettings:
        if (self.frames - 1) % TIME_FACTOR:
            below = 1 + (self.frames - 1) // TIME_FACTOR * TIME_FACTOR
            raise ValueError(
                f"frames {self.frames}: write 1 + a multiple of {TIME_FACTOR}, {below} or {below + TIME_FACTOR}"
            )
        return self


class LossSettings(Settings):
    """Weights of the parts of the loss; all but `kl` are means of absolute values of the error, on pixels in [-1, 1]."""

    l1: float = Field(1.0, ge=0, description="Of the error itself.")
    gradient: float = Field(
        0.5, ge=0, description="Of its differences between neighbours in rows, columns and time: edges and motion."
    )
    frequency: float = Field(0.2, ge=0, description="Of its Fourier transform over rows and columns, orthonormal.")
    kl: float = Field(
        1e-4,
        ge=0,
        description="Of the posterior's divergence from a standard normal distribution, in nats a latent value.",
    )


class AutoencoderTrainSettings(Settings):
    """How a `causal` autoencoder is trained."""

    preset: Literal["tiny", "small", "large"] = Field(
        "small", description="Size of the network: small has 3.6 million weights, large 64 million."
    )
    steps: int = Field(20000, ge=1, description="Optimizer steps of the whole run.")
    crops: tuple[CropSettings, ...] = Field(
        (
            CropSettings(),
            CropSettings(size=256, frames=5, batch=4, share=0.5),
            CropSettings(size=256, frames=1, batch=8, share=0.25),
        ),
        min_length=1,
        description="Kinds of steps; the first is the one that is validated.",
    )
    strides: tuple[int, ...] = Field(
        (1, 2, 3), min_length=1, description="Crops take every n-th frame, for one of these n."
    )
    loss: LossSettings = LossSettings()
    lr: float = Field(2e-3, gt=0, description="Peak learning rate of Muon, and of AdamW for vectors.")
    warmup_steps: int = Field(200, ge=0, description="Steps over which the learning rate rises from 0 to `lr`.")
    decay_steps: int = Field(
        0, ge=0, description="Last steps, over which the learning rate falls linearly to 0; 0 keeps it constant."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of matrices.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW moment decays, for vectors.")
    clip_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this global norm.")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights, which are what is kept.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the convolutions; auto is bf16 on a GPU, fp32 on a CPU."
    )
    compile: bool = Field(
        False, description="Compile the network with torch.compile: the first steps take minutes, the others less."
    )
    loaders: int = Field(8, ge=1, description="Threads that read crops.")
    workers: int = Field(1, ge=1, description="Training processes; on GPUs, one GPU each.")
    max_failures: int = Field(
        2, ge=0, description="How often lost workers are replaced and training goes on from the newest checkpoint."
    )
    checkpoint_every: int = Field(1000, ge=1, description="Steps between checkpoints; the last step always writes one.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    validate_every: int = Field(1000, ge=0, description="Steps between measurements on clips held out; 0 for never.")
    validation_clips: int = Field(16, ge=1, description="Most clips held out that are measured.")
    log_every: int = Field(10, ge=1, description="Steps between points on trackers; metrics.jsonl has every step.")
    trackers: tuple[TrackerName, ...] = Field(
        ("tensorboard",), description="Where curves are shown while the run goes on."
    )

    @model_validator(mode="after")
    def _consistent(self) -> AutoencoderTrainSettings:
        if min(self.strides) < 1:
            raise ValueError(f"strides {list(self.strides)}: every n-th frame, so n is 1 or more")
        for crop in self.crops:
            if crop.batch % self.workers:
                raise ValueError(
                    f"batch {crop.batch} cannot be shared by {self.workers} workers; write a multiple of {self.workers}"
                )
        self.optimisation()
        return self

    def optimisation(self) -> TrainSettings:
        """What this has in common with the training of any model: engine, checkpoints and workers take it."""
        names = TrainSettings.model_fields.keys() & type(self).model_fields.keys() - {"precision"}
        return TrainSettings(**{name: getattr(self, name) for name in names})
