"""Settings of autoencoder training: the `train` section of its recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from cluster import weight_files
from cluster.config import Settings
from training.autoencoders._linear_weights import SPACE_FACTOR, TIME_FACTOR
from training.settings import TrainSettings
from training.tracking.trackers import TrackerName
from training.workers import (
    DEVICE_DESCRIPTION,
    MAX_FAILURES_DESCRIPTION,
    WORKERS_DESCRIPTION,
    Device,
    WorkerRequest,
    Workers,
    check_is_workers,
)

REPORT = "report.json"
"""File of an export, written last, that tells what was trained and its quality."""


class CropSettings(Settings):
    """Settings of the random crops of clips that one kind of step takes."""

    size: int = Field(128, ge=2 * SPACE_FACTOR, multiple_of=SPACE_FACTOR, description="Side of the square, in pixels.")
    frames: int = Field(17, ge=1, description="Frames, 1 + a multiple of 4; 1 for images.")
    batch: int = Field(8, ge=1, description="Crops per step, over all workers.")
    share: float = Field(
        1.0, gt=0, description="Share of the steps of this kind, relative to the shares of the others."
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> CropSettings:
        if (self.frames - 1) % TIME_FACTOR:
            below = 1 + (self.frames - 1) // TIME_FACTOR * TIME_FACTOR
            raise ValueError(
                f"frames {self.frames}: write 1 + a multiple of {TIME_FACTOR}, {below} or {below + TIME_FACTOR}"
            )
        return self


class LossSettings(Settings):
    """Settings of the loss: the weights of its parts.

    All parts but `kl` are means of absolute values of the error, on pixels in [-1, 1].
    """

    l1: float = Field(1.0, ge=0, description="Weight of the error itself.")
    gradient: float = Field(
        0.5,
        ge=0,
        description="Weight of the error's differences between neighbours in rows, columns and time: edges and motion.",
    )
    frequency: float = Field(
        0.2, ge=0, description="Weight of the error's orthonormal Fourier transform over rows and columns."
    )
    kl: float = Field(
        1e-4,
        ge=0,
        description="Weight of the posterior's divergence from a standard normal distribution, in nats per value.",
    )


class AutoencoderTrainSettings(Settings):
    """Settings of the training of a `causal` autoencoder."""

    preset: Literal["tiny", "small", "large"] = Field(
        "small", description="Size of the network: small has 3.6 million weights, large 64 million."
    )
    init: str | None = Field(
        None,
        min_length=1,
        description="Weights to start from: the name of shipped weights, or the path of a file that train-autoencoder "
        "wrote; null for random ones.",
    )
    decoder_noise: float = Field(
        0.0,
        ge=0,
        description="Above 0, only the decoder of `init` is trained, on latents with noise: for each crop a standard "
        "deviation is drawn between 0 and this share of the latents' own. Such a decoder repairs errors of generated "
        "latents, and the latents of videos stay as they are, unless `latents` changes them.",
    )
    latents: Literal["channels", "pixels"] = Field(
        "channels",
        description="What exported latents are normalised by: channels gives each channel unit variance; pixels maps "
        "the channels so that equal changes of any of them change pixels equally, and gives all together unit "
        "variance. Reconstructions are the same, and small diffusion models learn more from pixels.",
    )
    steps: int = Field(20000, ge=1, description="Optimizer steps of the whole run.")
    crops: tuple[CropSettings, ...] = Field(
        (
            CropSettings(),
            CropSettings(size=256, frames=5, batch=4, share=0.5),
            CropSettings(size=256, frames=1, batch=8, share=0.25),
        ),
        min_length=1,
        description="Kinds of steps; validation uses the first.",
    )
    strides: tuple[int, ...] = Field(
        (1, 2, 3), min_length=1, description="Crops take every n-th frame, with n drawn from these."
    )
    loss: LossSettings = LossSettings()
    lr: float = Field(2e-3, gt=0, description="Peak learning rate of Muon, and of AdamW for vectors.")
    warmup_steps: int = Field(200, ge=0, description="Steps over which the learning rate rises from 0 to `lr`.")
    decay_steps: int = Field(
        0, ge=0, description="Last steps, over which the learning rate falls linearly to 0; 0 keeps it constant."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of matrices.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="Decay rates of AdamW's two moments, for vectors.")
    clip_norm: float = Field(1.0, gt=0, description="Global norm above which gradients are scaled down to it.")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights, which are exported.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the convolutions; auto is bf16 on a GPU, fp32 on a CPU."
    )
    compile: bool = Field(
        False,
        description="Compile the network with torch.compile: the first steps take minutes, the others are faster.",
    )
    loaders: int = Field(8, ge=1, description="Threads that read crops.")
    device: Device = Field("auto", description=DEVICE_DESCRIPTION)
    workers: Workers = Field("auto", description=WORKERS_DESCRIPTION)
    max_failures: int = Field(2, ge=0, description=MAX_FAILURES_DESCRIPTION)
    checkpoint_every: int = Field(1000, ge=1, description="Steps between checkpoints; the last step always writes one.")
    keep_checkpoints: int = Field(2, ge=1, description="Number of newest checkpoints that are kept.")
    validate_every: int = Field(1000, ge=0, description="Steps between measurements on held-out clips; 0 for never.")
    validation_clips: int = Field(16, ge=1, description="Most held-out clips that are measured.")
    log_every: int = Field(10, ge=1, description="Steps between points on trackers; metrics.jsonl has every step.")
    trackers: tuple[TrackerName, ...] = Field(
        ("tensorboard",), description="Services that show curves during training."
    )

    _is_workers = field_validator("workers", mode="before")(check_is_workers)

    _absolute = field_validator("init")(weight_files.absolute_or_none)

    @model_validator(mode="after")
    def _consistent(self) -> AutoencoderTrainSettings:
        if min(self.strides) < 1:
            raise ValueError(f"strides {list(self.strides)}: crops take every n-th frame, so n must be at least 1")
        for crop in self.crops:
            if self.workers != "auto" and crop.batch % self.workers:
                raise ValueError(
                    f"batch {crop.batch} cannot be shared by {self.workers} workers; write a multiple of {self.workers}"
                )
        if self.decoder_noise and self.init is None:
            raise ValueError(
                f"decoder_noise {self.decoder_noise:g} trains the decoder of given weights: add init, as in init: small"
            )
        self.train_settings()
        return self

    @property
    def worker_request(self) -> WorkerRequest:
        """The number of workers that the settings ask for, among which the crops of every step can be shared."""
        batches = tuple(crop.batch for crop in self.crops)
        return WorkerRequest(self.workers, divides=batches, device=self.device)

    def train_settings(self) -> TrainSettings:
        """Return the settings in common with the training of any model, which engine, checkpoints and workers read.

        Raises `ValueError` if they contradict each other.
        """
        names = TrainSettings.model_fields.keys() & type(self).model_fields.keys() - {"precision", "init"}
        return TrainSettings(optimizer="muon", **{name: getattr(self, name) for name in names})
