"""The training loop of one rank of an autoencoder's training. Knows neither Ray nor DeepSpeed."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster import storage
from cluster.telemetry import log
from training.autoencoder_training.crops import Batch, Clips, Crops, fingerprint
from training.autoencoder_training.losses import divergence, reconstruction_loss
from training.autoencoder_training.settings import AutoencoderTrainSettings
from training.autoencoder_training.validation import Validation
from training.autoencoders._causal_network import CHANNELS, PRESETS, CausalNetwork
from training.autoencoders._causal_weights import Trained, new_network, read_trained, write_trained
from training.autoencoders._linear_weights import SPACE_FACTOR, TIME_FACTOR
from training.autoencoders.linear import Linear
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.reader import load_checkpoint
from training.checkpoints.run_folder import CHANGEABLE_ON_RESUME
from training.checkpoints.writer import save_checkpoint
from training.ema import Ema
from training.engine import Engine, open_engine
from training.optimizers import SkippableMuon
from training.rng import generator
from training.stopping import Interrupted, NonFiniteLossError, stop_signals
from training.tracking.metrics import Metrics, Record

WEIGHTS, REPORT = "causal.safetensors", "report.json"

STATISTICS_STEPS = 64
"""Batches of crops over which mean and standard deviation of latents are taken."""
STATISTICS_SEED_OFFSET = 1
"""Added to the run's seed, so that they are not the crops of the first steps."""


@dataclass(frozen=True)
class AutoencoderResult:
    """What a training left behind."""

    weights_uri: str
    """For `autoencoder: {name: causal, weights: ...}`."""
    report: dict[str, Any]
    """Steps, `val_psnr_db` and `val_ssim` of these weights, and `linear`, the same of the linear autoencoder on the same clips."""


def run_folder(settings: AutoencoderTrainSettings, data: Path, out_uri: str, seed: int) -> str:
    """Folder of a run under `out_uri`, named by what shapes it, so that runs that differ never mix."""
    free = {*CHANGEABLE_ON_RESUME, "loaders", "compile", "validation_clips"}
    key = storage.digest(settings.model_dump_json(exclude=free), str(seed), fingerprint(data))
    return storage.join(storage.absolute(out_uri), f"autoencoder-{key[:12]}")


def result(settings: AutoencoderTrainSettings, run_uri: str) -> AutoencoderResult | None:
    """What a run left behind if it is finished for these settings, else None."""
    uri = storage.join(run_uri, "export", REPORT)
    if not storage.exists(uri):
        return None
    report = json.loads(storage.read_bytes(uri))
    return (
        AutoencoderResult(storage.join(run_uri, "export", WEIGHTS), report)
        if report["steps"] >= settings.steps
        else None
    )


def train_autoencoder(
    settings: AutoencoderTrainSettings, data: Path, run_uri: str, seed: int, device: torch.device, seconds: float = math.inf
) -> AutoencoderResult:
    """Train to `settings.steps`, or for about so many seconds, from the newest checkpoint of the run; every rank calls it.

    The averaged weights are exported at either end. Raises `ValueError` for clips that cannot be used, `NonFiniteLossError`, and
    `Interrupted` on SIGINT or SIGTERM, after a checkpoint and without an export.
    """
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    network = new_network(PRESETS[settings.preset], seed, bf16)
    if settings.compile:
        network.encoder.compile()
        network.decoder.compile()
    shared = settings.optimisation()
    engine = open_engine(network, shared, device, SkippableMuon)
    ema = Ema(engine.weight_shards(), settings.ema_decay)
    crops = Crops(Clips(data, "train"), settings, seed)
    validation = Validation(Clips(data, "val"), settings, engine)
    reached = newest_checkpoint(run_uri)
    if reached is not None:
        load_checkpoint(reached, engine, ema)
    step = reached.step if reached else 0
    if step < settings.steps:
        step = _steps(
            settings, run_uri, seed, fingerprint(data), crops, validation, engine, ema, step, time.monotonic() + seconds
        )
    return _export(settings, data, run_uri, seed, validation, engine, ema, step)


def _steps(
    settings: AutoencoderTrainSettings,
    run_uri: str,
    seed: int,
    data: str,
    crops: Crops,
    validation: Validation,
    engine: Engine,
    ema: Ema,
    start_step: int,
    deadline_s: float,
) -> int:
    """Take steps from `start_step`, counted from 0, to the last or the deadline; returns how many are done then. `data` is the clips' fingerprint."""
    shared = settings.optimisation()
    done = start_step
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(crops.from_step(start_step, engine.rank, engine.world_size))
        told = settings.model_dump(mode="json") | {"seed": seed, "data": data}
        metrics = (
            stack.enter_context(Metrics(run_uri, start_step, settings.log_every, settings.trackers, told))
            if engine.rank == 0
            else None
        )
        stop_asked = stack.enter_context(stop_signals())
        while done < settings.steps:
            asked_s = time.perf_counter()
            step, batch = next(batches)
            assert step == done
            record: Record = {"data_wait_s": time.perf_counter() - asked_s}
            take_step(settings, engine, seed, step, batch, record)
            ema.update(engine.weight_shards(), step)
            done = step + 1
            record["step_s"] = time.perf_counter() - asked_s
            record["tokens_per_s"] = record["tokens"] / record["step_s"]
            stopping, out_of_time = (count > 0 for count in engine.all_sum([stop_asked(), time.monotonic() >= deadline_s]))
            last = stopping or out_of_time or done == settings.steps
            if settings.validate_every and (last or done % settings.validate_every == 0):
                with engine.swapped_weights(ema.averages):
                    record |= validation.measure(lambda video: reconstructed(engine, video))
                    if engine.rank == 0:
                        validation.strip(
                            lambda video: reconstructed(engine, video),
                            storage.join(run_uri, "strips", f"step-{done:08d}.png"),
                        )
            if metrics:
                metrics.add({"step": done, **record})
            if last or done % settings.checkpoint_every == 0:
                if metrics:
                    metrics.flush()
                save_checkpoint(run_uri, done, engine, ema, shared)
            if stopping and done < settings.steps:
                raise Interrupted(f"stopped after step {done} of {settings.steps}; run again to go on from there")
            if out_of_time:
                break
    return done


def take_step(
    settings: AutoencoderTrainSettings, engine: Engine, seed: int, step: int, batch: Batch, record: Record
) -> None:
    """One optimizer step over this rank's crops; fills the record. Every crop weighs the same, whatever the number of workers."""
    video_BCTHW = batch.pixels(engine.device)
    noise_BCTHW = torch.stack([_noise(seed, step, item, video_BCTHW.shape) for item in batch.items]).to(engine.device)
    made_BCTHW, mean_BCTHW, log_variance_BCTHW = engine.forward(video_BCTHW, noise_BCTHW)
    pixels_B = reconstruction_loss(settings.loss, made_BCTHW, video_BCTHW)
    kl_B = divergence(mean_BCTHW, log_variance_BCTHW)
    losses_B = pixels_B + settings.loss.kl * kl_B
    n_cells = mean_BCTHW.shape[0] * math.prod(mean_BCTHW.shape[2:])
    totals = torch.stack([losses_B.detach().sum(), pixels_B.detach().sum(), kl_B.detach().sum()]).tolist()
    count, cells, loss, pixels, kl = engine.all_sum([len(losses_B), n_cells, *totals])
    if not math.isfinite(loss):
        names = ", ".join(sorted(set(engine.all_gather(list(batch.names)))))
        raise NonFiniteLossError(
            f"step {step + 1}: the loss is {loss}, from clips {names}; nothing was updated. Lower lr"
        )
    engine.backward(losses_B.sum() / count, last=True)
    lr = settings.optimisation().lr_at(step)
    record |= {"loss": loss / count, "pixel_loss": pixels / count, "kl": kl / count, "lr": lr}
    record |= {"grad_norm": engine.step(lr), "tokens": int(cells), "samples": int(count)}


def reconstructed(engine: Engine, video_BCTHW: Tensor) -> Tensor:
    """What comes back of the posterior's mean."""
    noise_BCTHW = torch.zeros((len(video_BCTHW), *_latent_shape(video_BCTHW.shape)), device=video_BCTHW.device)
    made_BCTHW: Tensor = engine.forward(video_BCTHW, noise_BCTHW)[0]
    return made_BCTHW


def _latent_shape(shape: torch.Size) -> tuple[int, int, int, int]:
    return CHANNELS, 1 + (shape[2] - 1) // TIME_FACTOR, shape[3] // SPACE_FACTOR, shape[4] // SPACE_FACTOR


def _noise(seed: int, step: int, item: int, shape: torch.Size) -> Tensor:
    """A crop's noise, the same on whatever rank it is."""
    return torch.randn(_latent_shape(shape), generator=generator(seed, "autoencoder", step, item))


def _export(
    settings: AutoencoderTrainSettings,
    data: Path,
    run_uri: str,
    seed: int,
    validation: Validation,
    engine: Engine,
    ema: Ema,
    step: int,
) -> AutoencoderResult:
    """Write the averaged weights, with the statistics of their latents, and how well they do; every rank calls it."""
    with engine.swapped_weights(ema.averages):
        averaged = engine.full_parameters(on_all_ranks=True)
    rounded = new_network(PRESETS[settings.preset], seed)
    rounded.load_state_dict(
        {**rounded.state_dict(), **{name: value.to(torch.bfloat16).float() for name, value in averaged.items()}}
    )
    rounded = rounded.to(engine.device).eval()
    scores = validation.measure(lambda video: rounded.decode(rounded.encode(video)[0]))
    linear = Linear(channels=CHANNELS).open(engine.device)
    baseline = validation.measure(lambda video: linear.decode(linear.encode(video)))
    export_uri = storage.join(run_uri, "export")
    report = {
        "steps": step,
        "seed": seed,
        "preset": settings.preset,
        "data": fingerprint(data),
        **scores,
        "linear": baseline,
    }
    if engine.rank == 0:
        mean_2C, std_2C = latent_statistics(
            rounded, Crops(Clips(data, "train"), settings, seed + STATISTICS_SEED_OFFSET), engine.device
        )
        weights = write_trained(
            Trained(rounded, mean_2C, std_2C, {key: report[key] for key in ("steps", "seed", "preset", "data")})
        )
        read_trained(weights, WEIGHTS)
        storage.write_bytes(storage.join(export_uri, WEIGHTS), weights)
        storage.write_bytes(storage.join(export_uri, REPORT), json.dumps(report, indent=1).encode())
        after = f"after {step} steps {scores['val_psnr_db']:.2f} dB, SSIM {scores['val_ssim']:.4f} on clips held out"
        log.info(f"{after}; linear{CHANNELS} has {baseline['val_psnr_db']:.2f} dB, {baseline['val_ssim']:.4f}")
    engine.barrier()
    return AutoencoderResult(storage.join(export_uri, WEIGHTS), report)


@torch.no_grad()
def latent_statistics(network: CausalNetwork, crops: Crops, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[2, C]` of latents of random crops: of first frames, then of all later ones."""
    sums = torch.zeros(2, 3, CHANNELS, dtype=torch.float64)
    for step in range(STATISTICS_STEPS):
        latent_BCTHW = network.encode(crops.batch(step).pixels(device))[0].double().cpu()
        for row, part_BCTHW in enumerate((latent_BCTHW[:, :, :1], latent_BCTHW[:, :, 1:])):
            values_CN = part_BCTHW.movedim(1, 0).flatten(1)
            sums[row] += torch.stack(
                [values_CN.sum(1), values_CN.square().sum(1), torch.full((CHANNELS,), float(values_CN.shape[1]))]
            )
    if not sums[1, 2].any():
        # Trained on pictures alone: later frames are normalised as first ones are.
        sums[1] = sums[0]
    mean_2C = sums[:, 0] / sums[:, 2]
    variance_2C = (sums[:, 1] / sums[:, 2] - mean_2C.square()).clamp(min=1e-8)
    return mean_2C.float(), variance_2C.sqrt().float()
