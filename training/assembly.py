"""Construction of a training run from its settings and data set: engine, averages, plan of steps, and the card of its
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor

from captioning.encoder import FOLDER as ENCODERS
from captioning.encoder import TextEncoderSettings
from cluster.arrays import UInt64Array
from cluster.plugins import build
from cluster.telemetry import log
from training.adapters.lora import adapter_initialiser, add_adapter, starting_layers
from training.autoencoder import FOLDER as AUTOENCODERS
from training.autoencoder import AutoencoderSettings
from training.checkpoints.initial_weights import (
    InitialWeights,
    check_on_rank_0,
    load_initial_weights,
)
from training.checkpoints.model_card import AdapterCard, ModelCard
from training.checkpoints.starting_weights import weights_to_start_from
from training.conditioning import ConditioningRates
from training.data.buckets import latent_size, parse_bucket_name
from training.data.costs import SampleCosts, Work
from training.data.dataset import Dataset
from training.data.plan import LastFrameConditioning, Planner
from training.ema import Ema
from training.engine import Engine, open_engine
from training.fitting import fit_to_device
from training.model import ModelSettings
from training.network import InitialiseWeight, VideoModel, parameter_shapes
from training.sampling.provenance import version
from training.settings import TrainSettings
from training.step import StepConfig, samples_with_last_frame
from training.tracking.breakdown import LossParts
from training.weight_patterns import freeze

DEFAULT_FPS = 8.0
"""Frames per second in the card of a model trained on images alone, which have no frame rate; any value would do."""

LatentSizes = Mapping[str, tuple[int, int, int]]
"""Latent frames, rows and columns by bucket."""


@dataclass(frozen=True)
class TrainingRun:
    """One rank's state of a training run, besides its progress."""

    settings: TrainSettings
    manifest_uri: str
    run_uri: str
    """Folder of the run."""
    dataset: Dataset
    """The training split."""
    step_config: StepConfig
    loss_parts: LossParts
    engine: Engine
    ema: Ema
    base: InitialWeights | None
    """The weights that stay as they are, those of an adapter's base or frozen ones; None if all weights train."""

    @classmethod
    def open(
        cls, settings: TrainSettings, manifest_uri: str, run_uri: str, seed: int, device: torch.device
    ) -> TrainingRun:
        """Return a run with the untrained model, fitted to the device's memory; every rank calls it.

        Raises `DeviceMemoryError` if a step does not fit.
        """
        dataset = Dataset.open(manifest_uri, "train")
        text_dim = dataset.null_text().shape[-1]
        settings = fit_to_device(settings, dataset, text_dim, device)
        step_config = make_step_config(settings, dataset, seed)
        keeps = settings.adapter is not None or settings.frozen
        base = weights_to_start_from(settings) if keeps else None
        engine = open_untrained_engine(settings, dataset.info.channels, text_dim, seed, device, base)
        ema = Ema(engine.weight_shards(), settings.ema_decay)
        parts = LossParts(pc.unique(dataset.table["bucket"]).to_pylist())
        return cls(settings, manifest_uri, run_uri, dataset, step_config, parts, engine, ema, base)

    def start_from(self, weights: InitialWeights) -> None:
        """Set the weights and their averages to those of an earlier model, where they fit; every rank calls it.

        Raises as `load_initial_weights` does.
        """
        with torch.device("meta"):
            model = self.settings.model.build(self.dataset.info.channels, self.step_config.null_text.shape[-1])
        load_initial_weights(weights, self.engine, parameter_shapes(model))
        self.ema.restart(self.engine.weight_shards())
        self._warn_of_other_parts(weights)

    def check_base(self, state: Mapping[str, Any]) -> None:
        """Check the weights that stay as they are, if there are some; every rank calls it.

        `state` is that of the checkpoint that the run resumes from. Raises `DamagedError` if they were altered, and
        `ValueError` if the checkpoint belongs to others.
        """
        if self.base is None:
            return
        if (trained := state.get("base", self.base.identity)) != self.base.identity:
            raise ValueError(
                f"{self.base.uri}: its weights are {self.base.identity}, and this run was trained beside {trained}; "
                f"put those back, or remove {self.run_uri} to start over"
            )
        check_on_rank_0(self.base, self.engine)
        if not state:
            self._warn_of_other_parts(self.base)

    def with_frozen(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that train together with those that stay as they are; none on a rank without any."""
        if self.base is None or not self.settings.frozen or not weights:
            return dict(weights)
        with torch.device("meta"):
            model = self.settings.model.build(self.dataset.info.channels, self.step_config.null_text.shape[-1])
        frozen = {name: shape for name, shape in parameter_shapes(model).items() if name not in weights}
        return {**weights, **self.base.whole(frozen)}

    def _warn_of_other_parts(self, weights: InitialWeights) -> None:
        if weights.card is not None and self.engine.rank == 0:
            here = self.model_card(0)
            for key in ("autoencoder_identity", "text_encoder_identity", "objective"):
                before, now = getattr(weights.card, key), getattr(here, key)
                if before != now:
                    log.warning(f"init {weights.uri}: was trained with {key} {before}, and this run has {now}")

    def model_card(self, step: int) -> ModelCard:
        """Return the card of the model after `step` steps; see `make_model_card`."""
        text_dim = self.step_config.null_text.shape[-1]
        card = make_model_card(self.settings, self.dataset, text_dim, step, self.step_config.seed)
        if self.settings.adapter is None or self.base is None:
            return card
        adapter = self.settings.adapter.resolved(self.settings.model)
        about = {"base": self.settings.init or self.base.uri, "base_identity": self.base.identity}
        return card.model_copy(update={"adapter": AdapterCard(**adapter.model_dump(), **about)})


def make_step_config(settings: TrainSettings, dataset: Dataset, seed: int) -> StepConfig:
    """Return the configuration of training steps on this data set."""
    return StepConfig(
        model=settings.model,
        objective=settings.objective,
        conditioning=settings.conditioning,
        caption_drop=settings.caption_drop,
        null_text=dataset.null_text().to(torch.float32),
        time_factor=dataset.info.time_factor,
        seed=seed,
    )


def open_untrained_engine(
    settings: TrainSettings,
    channels: int,
    text_dim: int,
    seed: int,
    device: torch.device,
    base: InitialWeights | None = None,
) -> Engine:
    """Return an engine with the untrained model, whose weights are the same on every rank and in every kind of engine.

    With `base` it is an untrained adapter of these weights, or has them and trains those that are not frozen. Torch's
    global random state is left unchanged.
    """
    with torch.device("meta"):
        model = settings.model.build(channels, text_dim)
    if base is not None:
        has_adapter = settings.adapter is not None
        initialise_weight = adapt(model, settings, base, seed) if has_adapter else keep(model, settings, base)
        return open_engine(model, settings, device, initialise_weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_engine(model, settings, device)


def adapt(model: VideoModel, settings: TrainSettings, base: InitialWeights, seed: int) -> InitialiseWeight:
    """Add an untrained adapter to a model without memory, in place; return what fills its weights and those of the
    base.

    Raises `ValueError` for a target that the model lacks, and if the base is another model.
    """
    assert settings.adapter is not None
    base.check_fits_all(parameter_shapes(model))
    adapter = settings.adapter.resolved(settings.model)
    # Before the adapter is there, in which layers have other names.
    start = starting_layers(adapter, model)
    add_adapter(model, adapter)
    return adapter_initialiser(model, base.fill, seed, start)


def keep(model: VideoModel, settings: TrainSettings, base: InitialWeights) -> InitialiseWeight:
    """Freeze weights of a model without memory, in place; return what fills all of them with those of the base.

    Raises `ValueError` for a pattern that no weight matches, and if the base is another model.
    """
    base.check_fits_all(parameter_shapes(model))
    freeze(model, settings.frozen)
    return base.fill


def make_model_card(settings: TrainSettings, dataset: Dataset, text_dim: int, step: int, seed: int) -> ModelCard:
    """Return the card of a model trained for `step` steps; `write_export` fills in the digest of the weights."""
    info = dataset.info
    table = dataset.table
    video_fps = pc.value_counts(table["fps"].filter(pc.equal(table["kind"], "video"))).to_pylist()
    fps = max(video_fps, key=lambda found: found["counts"])["values"] if video_fps else DEFAULT_FPS
    width, height = (pc.subtract(table[f"content_{side}1"], table[f"content_{side}0"]) for side in "xy")
    source_sides = pc.sqrt(pc.multiply(width, height))
    return ModelCard(
        model=settings.model,
        objective=settings.objective,
        channels=info.channels,
        text_dim=text_dim,
        autoencoder=build(AUTOENCODERS, AutoencoderSettings, info.autoencoder),
        autoencoder_identity=info.autoencoder_identity,
        text_encoder=build(ENCODERS, TextEncoderSettings, info.text_encoder),
        text_encoder_identity=info.text_encoder_identity,
        fps=fps,
        source_side=float(pc.quantile(source_sides, interpolation="lower")[0].as_py()),
        buckets=tuple(sorted(pc.unique(table["bucket"]).to_pylist())),
        step=step,
        init=settings.init,
        seed=seed,
        data=info.fingerprint,
        weights="",
        worldloom=version(),
    )


def make_planner(dataset: Dataset, settings: TrainSettings, seed: int) -> Planner:
    """Return the plan of a data set's steps: which samples each has, and which rank computes them.

    Samples are assigned to ranks by the model's FLOPs.
    """
    table, info = dataset.table, dataset.info
    means = table.group_by("bucket").aggregate([("n_text", "mean")])
    n_text = dict(zip(means["bucket"].to_pylist(), means["n_text_mean"].to_pylist(), strict=True))
    sizes = {name: latent_size(*parse_bucket_name(name), info.time_factor, info.space_factor) for name in n_text}
    costs = sample_costs(settings.model, sizes, n_text)
    last_frames = None
    if settings.conditioning.uses_last_frame:
        last_frames = last_frame_conditioning(settings.conditioning, seed, sizes, dataset.uid_hashes)
    return Planner(table["bucket"], table["n_tokens"], settings.batch, seed, costs, last_frames)


def sample_costs(model: ModelSettings, sizes: LatentSizes, n_text: Mapping[str, float]) -> SampleCosts:
    """Return the costs of samples by bucket.

    `n_text` is the mean number of text tokens in the main captions of each bucket's samples; `sizes` may have more
    buckets than it.
    """

    def work(name: str, frames: int, rows: int, columns: int) -> Work:
        tokens = model.tokens(frames, rows, columns)
        return Work(tokens, model.flops(tokens, round(n_text[name])))

    def without_and_with_last_frame(name: str) -> tuple[Work, Work]:
        frames, *area = sizes[name]
        # The last-frame latent makes a video one latent frame longer; images have none.
        return work(name, frames, *area), work(name, frames + (frames > 1), *area)

    return SampleCosts({name: without_and_with_last_frame(name) for name in n_text}, model.mixes_shapes)


def last_frame_conditioning(
    conditioning: ConditioningRates, seed: int, sizes: LatentSizes, hashes_N: UInt64Array
) -> LastFrameConditioning:
    """Return which samples training with this seed conditions on their last-frame latent; `hashes_N` are the
    `uid_hashes` of the rows of the data set.
    """
    extra_tokens = {name: rows * columns * (frames > 1) for name, (frames, rows, columns) in sizes.items()}
    return LastFrameConditioning(
        lambda rows, times_seen: samples_with_last_frame(conditioning, seed, hashes_N[rows], times_seen), extra_tokens
    )
