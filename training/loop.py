"""The training loop of one rank: load, step, record, validate, checkpoint, export. Knows neither Ray nor DeepSpeed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster import storage
from cluster.telemetry import log
from training.assembly import TrainingRun, make_planner
from training.checkpoints.checkpoint import Checkpoint, newest_checkpoint
from training.checkpoints.export import write_export
from training.checkpoints.reader import load_checkpoint
from training.checkpoints.writer import CheckpointWriter
from training.data.dataset import CaptionMix
from training.data.loader import Batch, Loader, LoaderSettings
from training.data.step_times import StepTimes, moments
from training.engine import NonFiniteGradientError
from training.settings import TrainSettings
from training.spikes import SpikeDetector
from training.step import make_noisy_batch, mse_losses, sample_key, stratified_quantiles
from training.stopping import Interrupted, NonFiniteLossError, stop_signals
from training.tracking.breakdown import SampleLoss, breakdown, gather_losses, sample_losses
from training.tracking.metrics import Metrics, Record
from training.tracking.previews import Previews
from training.tracking.throughput import Meter
from training.validation import Validation


@dataclass(frozen=True)
class Progress:
    """The state in which a call of `train_loop` ended."""

    export_uri: str
    checkpoint_uri: str
    step: int


def train_loop(settings: TrainSettings, manifest_uri: str, run_uri: str, seed: int, device: torch.device) -> Progress:
    """Train to `settings.steps` from the newest checkpoint of the run, or from the start; every rank calls it.

    Raises `NonFiniteLossError`, and `Interrupted` on SIGINT or SIGTERM.
    """
    run = TrainingRun.open(settings, manifest_uri, run_uri, seed, device)
    checkpoint = newest_checkpoint(run_uri)
    state = load_checkpoint(checkpoint, run.engine, run.ema) if checkpoint else {}
    if checkpoint is None or checkpoint.step < settings.steps:
        checkpoint = _train(run, checkpoint.step if checkpoint else 0, state)
    return Progress(_export(run, checkpoint.step), checkpoint.uri, checkpoint.step)


def _export(run: TrainingRun, step: int) -> str:
    """Write the export of the model after `step` steps and return its URI; every rank calls it."""
    export_uri = storage.join(run.run_uri, "export")
    raw = run.engine.full_parameters()
    with run.engine.swapped_weights(run.ema.averages):
        averaged = run.engine.full_parameters()
    if run.engine.rank == 0:
        write_export(export_uri, raw, averaged, run.step_config.null_text, run.model_card(step))
    run.engine.barrier()
    return export_uri


def _train(run: TrainingRun, start_step: int, state: Mapping[str, Any]) -> Checkpoint:
    """Take steps `start_step` to `settings.steps`, counted from 0, and return the last checkpoint.

    `state` is the one that `load_checkpoint` returned, empty at the start of a run.
    """
    settings, engine = run.settings, run.engine
    validation = None
    if settings.validate_every:
        validation = Validation(run.manifest_uri, settings, run.step_config, engine)
    previews = Previews(run)
    spikes = SpikeDetector(settings.skip_grad_norm, state.get("norms", ()))
    times = None
    if settings.batch.measured_costs:
        times = StepTimes.from_state(state["step_times"]) if "step_times" in state else StepTimes(start_step)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(contextlib.closing(CheckpointWriter(run.run_uri, engine, run.ema, settings)))
        loader = stack.enter_context(_open_loader(run, start_step, times))
        metrics = stack.enter_context(_open_metrics(run, start_step)) if engine.rank == 0 else None
        stop_requested = stack.enter_context(stop_signals())
        steps = iter(loader)
        meter = Meter(settings, engine)
        for step in range(start_step, settings.steps):
            meter.start()
            planned, batches = next(steps)
            meter.loaded()
            assert planned == step
            own_weight = sum(float(batch.weights.sum()) for batch in batches)
            weight, n_stopping = engine.all_sum([own_weight, stop_requested()])
            try:
                record = take_step(run, step, batches, weight, meter, spikes.limit())
            except NonFiniteLossError:
                # All ranks raise it, so they can finish the current checkpoint together.
                writer.wait()
                raise
            spikes.add(record["grad_norm"])
            if not record["skipped"]:
                run.ema.update(engine.weight_shards(), step)
            done = step + 1
            record |= meter.read()
            if times:
                times.add(step, engine.all_sum(moments(len(batches), meter.tokens, meter.forward_s)))
            if validation and (done % settings.validate_every == 0 or done == settings.steps):
                record |= validation.record()
            if previews.due(done):
                record |= previews.record(done, run.ema.averages, metrics)
            if metrics:
                metrics.add({"step": done, **record})
            stopping = n_stopping > 0
            if stopping or done % settings.checkpoint_every == 0 or done == settings.steps:
                if metrics:
                    metrics.flush()
                writer.start(done, {"norms": spikes.norms} | ({"step_times": times.state()} if times else {}))
            writer.poll()
            if stopping and done < settings.steps:
                writer.wait()
                raise Interrupted(f"stopped after step {done} of {settings.steps}; the same command resumes")
        checkpoint = writer.wait()
    assert checkpoint is not None
    return checkpoint


def _open_loader(run: TrainingRun, start_step: int, times: StepTimes | None) -> Loader:
    captions = CaptionMix(run.settings.captions, run.step_config.seed) if run.settings.captions else None
    ranks = LoaderSettings(run.engine.data_rank, run.engine.data_world_size, start_step, captions=captions)
    return Loader(run.dataset, make_planner(run.dataset, run.settings, run.step_config.seed, times), ranks)


def _open_metrics(run: TrainingRun, start_step: int) -> Metrics:
    settings, data = run.settings, run.dataset.info.fingerprint
    described = settings.model_dump(mode="json") | {"seed": run.step_config.seed, "data": data}
    return Metrics(run.run_uri, start_step, settings.log_every, settings.trackers, described)


def take_step(
    run: TrainingRun, step: int, batches: list[Batch], weight: float, meter: Meter, max_norm: float = math.inf
) -> Record:
    """Take one optimizer step over this rank's micro-batches and return its record; every rank calls it.

    `weight` is the sum of the weights of all ranks' samples. A gradient norm over `max_norm` skips the update. The loss is the mean over the samples of all ranks and
    micro-batches by their weights, so it does not depend on the number of workers. Neither do the noise levels, which
    are spread evenly over the samples of the whole step. Workers that share samples each count them, among the weights
    as among the losses. Raises `NonFiniteLossError` on all ranks, before any weight is updated.
    """
    engine, config = run.engine, run.step_config
    quantile_of = _step_quantiles(run, batches)
    losses: list[SampleLoss] = []
    results: list[tuple[Batch, list[float], Tensor]] = []
    for position, batch in enumerate(batches):
        noisy = make_noisy_batch(config, batch, quantile_of, engine.device)
        with meter.forward(noisy, batch.weights.tolist()):
            losses_B = mse_losses(engine.forward, noisy)
        share_B = batch.weights.to(engine.device) / weight
        # A factor of 0 would let NaN through, so a sample of weight 0 is left out of the sum.
        loss = torch.where(share_B > 0, losses_B * share_B, torch.zeros_like(losses_B)).sum()
        engine.backward(loss, last=position == len(batches) - 1)
        results.append((batch, noisy.times, losses_B.detach()))
    for batch, times, losses_B in results:
        losses += sample_losses(config, batch, times, losses_B.tolist())
    losses = gather_losses(losses, engine)
    parts = breakdown(losses, "loss")
    if not math.isfinite(parts["loss"]):
        names = ", ".join(one.uid for one in losses if not math.isfinite(one.loss))
        raise NonFiniteLossError(
            f"step {step + 1}: the loss is {parts['loss']}, from samples {names}; nothing was updated. "
            "Lower lr, or run `worldloom verify`"
        )
    lr = run.settings.lr_at(step)
    try:
        norm = engine.step(lr, max_norm)
    except NonFiniteGradientError as error:
        names = ", ".join(dict.fromkeys(engine.all_gather([uid for batch in batches for uid in batch.uids])))
        raise NonFiniteLossError(
            f"step {step + 1}: {error}, from samples {names}; nothing was updated. Lower lr"
        ) from error
    if norm > max_norm and engine.rank == 0:
        log.warning("step %d skipped: the gradient norm is %.3g, over the limit of %.3g", step + 1, norm, max_norm)
    record = {**parts, "skipped": int(norm > max_norm), "lr": lr, "grad_norm": norm}
    return record | {"samples": len(losses), "epoch": batches[0].epoch}


def _step_quantiles(run: TrainingRun, batches: list[Batch]) -> dict[str, float]:
    """Return the quantile of the noise level of each of this rank's samples, by `sample_key`."""
    counts = {
        sample_key(times_seen, uid): weight > 0
        for batch in batches
        for uid, times_seen, weight in zip(batch.uids, batch.times_seen, batch.weights.tolist(), strict=True)
    }
    keys = run.engine.all_gather([key for key, counted in counts.items() if counted])
    quantile_of = stratified_quantiles(run.step_config.seed, keys)
    # A sample of weight 0 only keeps ranks in step. It must not change the others' noise levels.
    return quantile_of | {key: 0.5 for key in counts if key not in quantile_of}
