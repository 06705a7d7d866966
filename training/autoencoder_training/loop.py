"""The training loop of one rank of autoencoder training. Imports neither Ray nor DeepSpeed."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster import storage, weight_files
from cluster.telemetry import log
from training.autoencoder_training.crops import Clips, CropBatch, Crops, fingerprint
from training.autoencoder_training.losses import kl_divergence, reconstruction_loss
from training.autoencoder_training.pixel_scale import change_coordinates, pixel_coordinates, pixel_metric
from training.autoencoder_training.settings import REPORT, AutoencoderTrainSettings
from training.autoencoder_training.validation import Validation
from training.autoencoders._causal_convolutions import CHANNELS, PRESETS
from training.autoencoders._causal_network import CausalNetwork
from training.autoencoders._causal_weights import TrainedNetwork, new_network
from training.autoencoders._linear_weights import SPACE_FACTOR, TIME_FACTOR
from training.autoencoders.causal import Causal
from training.autoencoders.linear import Linear
from training.checkpoints.reader import load_checkpoint, newest_whole_checkpoint
from training.checkpoints.run_folder import CHANGEABLE_ON_RESUME
from training.checkpoints.writer import save_checkpoint
from training.ema import Ema
from training.engine import Engine, open_engine
from training.rng import generator
from training.settings import TrainSettings
from training.stopping import Interrupted, NonFiniteLossError, stop_signals
from training.tracking.metrics import Metrics, Record

WEIGHTS = "causal.safetensors"
"""File of the exported weights."""

STATISTICS_STEPS = 64
"""Number of batches of crops over which mean and standard deviation of latents are taken."""
METRIC_STEPS = 8
"""Number of these batches over which the effect of latents on pixels is taken."""
STATISTICS_SEED_OFFSET = 1
"""Number added to the run's seed, so that these are not the crops of the first steps."""


@dataclass(frozen=True)
class AutoencoderResult:
    """The weights that a training exported, and their quality."""

    weights_uri: str
    """URI of the weights, for `autoencoder: {name: causal, weights: ...}`."""
    report: dict[str, Any]
    """Steps taken, `val_psnr_db` and `val_ssim` of these weights, and `linear`, the same values of the linear
    autoencoder on the same clips."""


@dataclass(frozen=True)
class AutoencoderRun:
    """One rank's state of an autoencoder training, besides its progress."""

    settings: AutoencoderTrainSettings
    train_settings: TrainSettings
    """The settings in common with all training, which engine and checkpoints read."""
    data: Path
    """Folder of clips."""
    run_uri: str
    """Folder of the run."""
    seed: int
    validation: Validation
    engine: Engine
    ema: Ema
    init: TrainedNetwork | None
    """The weights that training starts from, and the statistics of their latents."""

    @classmethod
    def open(
        cls, settings: AutoencoderTrainSettings, data: Path, run_uri: str, seed: int, device: torch.device
    ) -> AutoencoderRun:
        """Return a run with the untrained network, or with that of `settings.init`; every rank calls it.

        Raises `ValueError` for unusable clips or weights.
        """
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
        init = read_init(settings, bf16)
        network = init.network if init else new_network(PRESETS[settings.preset], seed, bf16)
        network.requires_grad_(True).train()
        if settings.decoder_noise:
            network.encoder.requires_grad_(False)
        if settings.compile:
            network.encoder.compile()
            network.decoder.compile()
        train_settings = settings.train_settings()
        engine = open_engine(network, train_settings, device)
        ema = Ema(engine.weight_shards(), settings.ema_decay)
        validation = Validation(Clips(data, "val"), settings, engine)
        return cls(settings, train_settings, data, run_uri, seed, validation, engine, ema, init)

    def crops(self, seed_offset: int = 0) -> Crops:
        """Return the random crops of the training clips."""
        return Crops(Clips(self.data, "train"), self.settings, self.seed + seed_offset)


def read_init(settings: AutoencoderTrainSettings, bf16: bool = False) -> TrainedNetwork | None:
    """Return the content of the file of `init`, None without one.

    Raises `ValueError` if there is no such file, or it has another size than `preset`.
    """
    if settings.init is None:
        return None
    file = Causal(weights=settings.init).weights_file()
    trained = TrainedNetwork.from_bytes(file.read_bytes(), settings.init, bf16)
    if trained.network.architecture != PRESETS[settings.preset]:
        fitting = [name for name, architecture in PRESETS.items() if architecture == trained.network.architecture]
        fix = f"write preset: {fitting[0]}" if fitting else "choose other weights"
        raise ValueError(f"{settings.init} has not the size of preset {settings.preset}; {fix}")
    return trained


def run_folder(settings: AutoencoderTrainSettings, data: Path, out_uri: str, seed: int) -> str:
    """Return the URI of a run's folder under `out_uri`, named by a hash of its settings, data and seed."""
    changeable = {*CHANGEABLE_ON_RESUME, "loaders", "compile", "validation_clips"}
    key = storage.digest(settings.model_dump_json(exclude=changeable), str(seed), fingerprint(data))
    return storage.join(storage.absolute(out_uri), f"autoencoder-{key[:12]}")


def find_result(settings: AutoencoderTrainSettings, run_uri: str) -> AutoencoderResult | None:
    """Return the result of a run if it has finished `settings.steps` steps, or None."""
    uri = storage.join(run_uri, "export", REPORT)
    if not storage.exists(uri):
        return None
    report = storage.read_json(uri)
    if report["steps"] < settings.steps:
        return None
    return AutoencoderResult(storage.join(run_uri, "export", WEIGHTS), report)


def train_autoencoder(
    settings: AutoencoderTrainSettings,
    data: Path,
    run_uri: str,
    seed: int,
    device: torch.device,
    seconds: float = math.inf,
) -> AutoencoderResult:
    """Train to `settings.steps`, or for about `seconds`, from the newest checkpoint of the run; every rank calls it.

    In both cases the averaged weights are exported. Raises `ValueError` for unusable clips, `NonFiniteLossError`, and
    `Interrupted` after SIGINT or SIGTERM, with a checkpoint but no export.
    """
    run = AutoencoderRun.open(settings, data, run_uri, seed, device)
    crops = run.crops()
    checkpoint = newest_whole_checkpoint(run_uri, run.engine)
    if checkpoint is not None:
        load_checkpoint(checkpoint, run.engine, run.ema)
    step = checkpoint.step if checkpoint else 0
    if step < settings.steps:
        step = _train(run, crops, step, time.monotonic() + seconds)
    return _export(run, step)


def _train(run: AutoencoderRun, crops: Crops, start_step: int, deadline_s: float) -> int:
    """Take steps from `start_step`, counted from 0, to the last one or the deadline; return the number of steps taken.

    `deadline_s` is a time of the monotonic clock.
    """
    settings, engine, ema = run.settings, run.engine, run.ema
    done = start_step
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(crops.from_step(start_step, engine.rank, engine.world_size))
        metrics = stack.enter_context(_open_metrics(run, start_step)) if engine.rank == 0 else None
        stop_requested = stack.enter_context(stop_signals())
        while done < settings.steps:
            started_s = time.perf_counter()
            step, batch = next(batches)
            assert step == done
            data_wait_s = time.perf_counter() - started_s
            record: Record = {"data_wait_s": data_wait_s} | take_step(run, step, batch)
            ema.update(engine.weight_shards(), step)
            done = step + 1
            record["step_s"] = time.perf_counter() - started_s
            record["tokens_per_s"] = record["tokens"] / record["step_s"]
            stopping, out_of_time = (
                count > 0 for count in engine.all_sum([stop_requested(), time.monotonic() >= deadline_s])
            )
            is_last = stopping or out_of_time or done == settings.steps
            if settings.validate_every and (is_last or done % settings.validate_every == 0):
                record |= _validate(run, done)
            if metrics:
                metrics.add({"step": done, **record})
            if is_last or done % settings.checkpoint_every == 0:
                if metrics:
                    metrics.flush()
                save_checkpoint(run.run_uri, done, engine, ema, run.train_settings)
            if stopping and done < settings.steps:
                raise Interrupted(f"stopped after step {done} of {settings.steps}; the same command resumes")
            if out_of_time:
                break
    return done


def _open_metrics(run: AutoencoderRun, start_step: int) -> Metrics:
    """Return the writer of the run's records, which also writes the settings with the seed and the data's
    fingerprint.
    """
    settings = run.settings
    recorded = settings.model_dump(mode="json") | {"seed": run.seed, "data": fingerprint(run.data)}
    return Metrics(run.run_uri, start_step, settings.log_every, settings.trackers, recorded)


def _validate(run: AutoencoderRun, done: int) -> dict[str, float]:
    """Measure the averaged weights on held-out clips after `done` steps, and write an image of reconstructed frames."""
    with run.engine.swapped_weights(run.ema.averages):
        values = run.validation.measure(lambda video: reconstruct(run.engine, video))
        if run.engine.rank == 0:
            uri = storage.join(run.run_uri, "strips", f"step-{done:08d}.png")
            run.validation.write_strip(lambda video: reconstruct(run.engine, video), uri)
    return values


def take_step(run: AutoencoderRun, step: int, batch: CropBatch) -> Record:
    """Take one optimizer step over this rank's crops and return its record; every rank calls it.

    The loss is the mean over the crops of all ranks, whatever the number of workers. Raises `NonFiniteLossError` on all
    ranks, before any weight changes.
    """
    settings, engine = run.settings, run.engine
    video_BCTHW = batch.pixels(engine.device)
    noise = [_latent_noise(run.seed, step, index, video_BCTHW.shape) for index in batch.indices]
    noise_BCTHW = torch.stack(noise).to(engine.device)
    added_std_BCTHW = _decoder_noise_std(run, step, batch.indices, noise_BCTHW.shape[2])
    made_BCTHW, mean_BCTHW, log_variance_BCTHW = engine.forward(video_BCTHW, noise_BCTHW, added_std_BCTHW)
    pixels_B = reconstruction_loss(settings.loss, made_BCTHW, video_BCTHW)
    kl_B = kl_divergence(mean_BCTHW, log_variance_BCTHW)
    losses_B = pixels_B + settings.loss.kl * kl_B
    n_cells = mean_BCTHW.shape[0] * math.prod(mean_BCTHW.shape[2:])
    totals = torch.stack([losses_B.detach().sum(), pixels_B.detach().sum(), kl_B.detach().sum()]).tolist()
    count, cells, loss, pixels, kl = engine.all_sum([len(losses_B), n_cells, *totals])
    if not math.isfinite(loss):
        names = ", ".join(sorted(set(engine.all_gather(list(batch.clip_names)))))
        raise NonFiniteLossError(
            f"step {step + 1}: the loss is {loss}, from clips {names}; nothing was updated. Lower lr"
        )
    engine.backward(losses_B.sum() / count, last=True)
    lr = run.train_settings.lr_at(step)
    record = {"loss": loss / count, "pixel_loss": pixels / count, "kl": kl / count, "lr": lr}
    return record | {"grad_norm": engine.step(lr), "tokens": int(cells), "samples": int(count)}


def reconstruct(engine: Engine, video_BCTHW: Tensor) -> Tensor:
    """Return the decoded mean of the posterior of pixels `[B, 3, T, H, W]`."""
    noise_BCTHW = torch.zeros((len(video_BCTHW), *_latent_shape(video_BCTHW.shape)), device=video_BCTHW.device)
    made_BCTHW: Tensor = engine.forward(video_BCTHW, noise_BCTHW)[0]
    return made_BCTHW


def _latent_shape(shape: torch.Size) -> tuple[int, int, int, int]:
    """Return the latent shape (C, t, h, w) of a video of shape (B, 3, T, H, W)."""
    return CHANNELS, 1 + (shape[2] - 1) // TIME_FACTOR, shape[3] // SPACE_FACTOR, shape[4] // SPACE_FACTOR


def _latent_noise(seed: int, step: int, index: int, shape: torch.Size) -> Tensor:
    """Return the noise of a crop's latents, the same on every rank."""
    return torch.randn(_latent_shape(shape), generator=generator(seed, "autoencoder", step, index))


def _decoder_noise_std(run: AutoencoderRun, step: int, indices: Sequence[int], frames: int) -> Tensor | None:
    """Return the standard deviations `[B, C, t, 1, 1]` of the noise that `decoder_noise` adds to latents of crops with
    these indices and so many latent frames, or None without it. They are the same on every rank.
    """
    if not run.settings.decoder_noise:
        return None
    assert run.init is not None
    draws = [torch.rand((), generator=generator(run.seed, "decoder noise", step, index)) for index in indices]
    share_B1111 = run.settings.decoder_noise * torch.stack(draws)[:, None, None, None, None]
    std_CT11 = run.init.std_2C[[0, *[1] * (frames - 1)]].T[..., None, None]
    return (share_B1111 * std_CT11).to(run.engine.device)


def _export(run: AutoencoderRun, step: int) -> AutoencoderResult:
    """Write the averaged weights with the statistics of their latents, and a report of their quality.

    Every rank calls it.
    """
    with run.engine.swapped_weights(run.ema.averages):
        averaged = run.engine.full_parameters(on_all_ranks=True)
    settings = run.settings
    init = read_init(settings)
    network = init.network if init else new_network(PRESETS[settings.preset], run.seed)
    network.load_state_dict({**network.state_dict(), **averaged})
    network = network.to(run.engine.device).eval()
    crops = run.crops(STATISTICS_SEED_OFFSET)
    if settings.latents == "pixels":
        batches = (crops.batch(step).pixels(run.engine.device) for step in range(METRIC_STEPS))
        change_coordinates(network, pixel_coordinates(pixel_metric(network, batches)))
    round_weights(network)
    scores = run.validation.measure(lambda video: network.decode(network.encode(video)[0]))
    linear = Linear(channels=CHANNELS).open(run.engine.device)
    baseline = run.validation.measure(lambda video: linear.decode(linear.encode(video)))
    data = fingerprint(run.data)
    about: dict[str, Any] = {"steps": step, "seed": run.seed, "preset": settings.preset, "data": data}
    if settings.init is not None:
        about["init"] = weight_files.identity(Causal(weights=settings.init).weights_file())
    if settings.decoder_noise:
        about["decoder_noise"] = settings.decoder_noise
    if settings.latents == "pixels":
        about["latents"] = settings.latents
    report = {**about, **scores, "linear": baseline}
    weights_uri = storage.join(run.run_uri, "export", WEIGHTS)
    if run.engine.rank == 0:
        if init and settings.decoder_noise and settings.latents == "channels":
            mean_2C, std_2C = init.mean_2C, init.std_2C
        else:
            mean_2C, std_2C = latent_statistics(network, crops, run.engine.device)
        if settings.latents == "pixels":
            std_2C = std_2C.square().mean(dim=1, keepdim=True).sqrt().expand_as(std_2C)
        weights = TrainedNetwork(network, mean_2C, std_2C, about).to_bytes()
        TrainedNetwork.from_bytes(weights, WEIGHTS)
        storage.write_bytes(weights_uri, weights)
        storage.write_bytes(storage.join(run.run_uri, "export", REPORT), json.dumps(report, indent=1).encode())
        after = f"after {step} steps {scores['val_psnr_db']:.2f} dB, SSIM {scores['val_ssim']:.4f} on held-out clips"
        log.info(f"{after}; linear{CHANNELS} has {baseline['val_psnr_db']:.2f} dB, {baseline['val_ssim']:.4f}")
    run.engine.barrier()
    return AutoencoderResult(weights_uri, report)


@torch.no_grad()
def round_weights(network: CausalNetwork) -> None:
    """Round the trained weights to those that a file has, which are bfloat16."""
    for weight in network.parameters():
        weight.copy_(weight.to(torch.bfloat16))


@torch.no_grad()
def latent_statistics(network: CausalNetwork, crops: Crops, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation `[2, C]` of the latents of random crops.

    Row 0 is over first latent frames, row 1 over all later ones.
    """
    sums = torch.zeros(2, 3, CHANNELS, dtype=torch.float64)
    for step in range(STATISTICS_STEPS):
        latent_BCTHW = network.encode(crops.batch(step).pixels(device))[0].double().cpu()
        for row, part_BCTHW in enumerate((latent_BCTHW[:, :, :1], latent_BCTHW[:, :, 1:])):
            values_CN = part_BCTHW.movedim(1, 0).flatten(1)
            sums[row] += torch.stack(
                [values_CN.sum(1), values_CN.square().sum(1), torch.full((CHANNELS,), float(values_CN.shape[1]))]
            )
    if not sums[1, 2].any():
        # Without later frames, as in training on images alone, they are normalised like first ones.
        sums[1] = sums[0]
    mean_2C = sums[:, 0] / sums[:, 2]
    variance_2C = (sums[:, 1] / sums[:, 2] - mean_2C.square()).clamp(min=1e-8)
    return mean_2C.float(), variance_2C.sqrt().float()
