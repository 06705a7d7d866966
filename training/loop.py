"""The training loop of one rank: read, step, record, validate, checkpoint, export. Knows neither Ray nor DeepSpeed."""

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
from training.assembly import make_model_card, make_step_config, untrained
from training.checkpoints.checkpoint import Checkpoint, newest_checkpoint
from training.checkpoints.reader import load_checkpoint
from training.checkpoints.export import write_export
from training.checkpoints.writer import CheckpointWriter
from training.data.dataset import CaptionMix, Dataset
from training.data.loader import Batch, Loader, LoaderSettings
from training.data.step_times import StepTimes, moments
from training.ema import Ema
from training.engine import Engine, NonFiniteGradientError
from training.assembly import make_planner
from training.settings import TrainSettings
from training.spikes import SpikeDetector
from training.step import StepConfig, key, losses, make_noisy_batch, stratified_quantiles
from training.stopping import Interrupted, NonFiniteLossError, stop_signals
from training.tracking.breakdown import breakdown, outcomes, shared
from training.tracking.metrics import Metrics, Record
from training.tracking.previews import Previews
from training.tracking.throughput import Meter
from training.validation import Validation


@dataclass(frozen=True)
class Progress:
    """Where a call of `train_loop` ended."""

    export_uri: str
    checkpoint_uri: str
    step: int


def train_loop(settings: TrainSettings, manifest_uri: str, run_uri: str, seed: int, device: torch.device) -> Progress:
    """Train to `settings.steps` from the newest checkpoint of the run, or from the start; every rank calls it.

    Raises `NonFiniteLossError`, and `Interrupted` on SIGINT or SIGTERM.
    """
    dataset = Dataset.open(manifest_uri, "train")
    task = make_step_config(settings, dataset, seed)
    text_dim = task.null_text.shape[-1]
    engine = untrained(settings, dataset.info.channels, text_dim, seed, device)
    ema = Ema(engine.weight_shards(), settings.ema_decay)
    reached = newest_checkpoint(run_uri)
    state = load_checkpoint(reached, engine, ema) if reached else {}
    if reached is None or reached.step < settings.steps:
        reached = _steps(
            settings, manifest_uri, run_uri, dataset, task, engine, ema, reached.step if reached else 0, state
        )
    export_uri = storage.join(run_uri, "export")
    raw = engine.full_parameters()
    with engine.swapped_weights(ema.averages):
        averaged = engine.full_parameters()
    if engine.rank == 0:
        write_export(
            export_uri, raw, averaged, task.null_text, make_model_card(settings, dataset, text_dim, reached.step, seed)
        )
    engine.barrier()
    return Progress(export_uri, reached.uri, reached.step)


def _steps(
    settings: TrainSettings,
    manifest_uri: str,
    run_uri: str,
    dataset: Dataset,
    task: StepConfig,
    engine: Engine,
    ema: Ema,
    start_step: int,
    state: Mapping[str, Any],
) -> Checkpoint:
    """Take steps `start_step` to `settings.steps`, counted from 0, and return the last checkpoint; `state` is that of the one before."""
    validation = Validation(manifest_uri, settings, task, engine) if settings.validate_every else None
    previews = Previews(run_uri, manifest_uri, settings, dataset, task, engine)
    guard = SpikeDetector(settings.skip_grad_norm, state.get("norms", ()))
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(contextlib.closing(CheckpointWriter(run_uri, engine, ema, settings)))
        times = None
        if settings.batch.measured_costs:
            times = StepTimes.from_state(state["step_times"]) if "step_times" in state else StepTimes(start_step)
        planner = make_planner(dataset, settings, task.seed, times)
        captions = CaptionMix(settings.captions, task.seed) if settings.captions else None
        loader = stack.enter_context(
            Loader(
                dataset,
                planner,
                LoaderSettings(engine.data_rank, engine.data_world_size, start_step, captions=captions),
            )
        )
        told = settings.model_dump(mode="json") | {"seed": task.seed, "data": dataset.info.fingerprint}
        metrics = (
            stack.enter_context(Metrics(run_uri, start_step, settings.log_every, settings.trackers, told))
            if engine.rank == 0
            else None
        )
        stop_asked = stack.enter_context(stop_signals())
        batches_of_steps = iter(loader)
        meter = Meter(settings, engine)
        for step in range(start_step, settings.steps):
            meter.start()
            planned, batches = next(batches_of_steps)
            meter.loaded()
            assert planned == step
            record: Record = {}
            try:
                stopping = take_step(settings, task, engine, step, batches, stop_asked(), meter, record, guard.limit())
            except NonFiniteLossError:
                # All ranks raise it, so the checkpoint under way can be finished together.
                writer.wait()
                raise
            guard.add(record["grad_norm"])
            if not record["skipped"]:
                ema.update(engine.weight_shards(), step)
            done = step + 1
            record |= meter.read()
            if times:
                times.add(step, engine.all_sum(moments(len(batches), meter.tokens, meter.forward_s)))
            if validation and (done % settings.validate_every == 0 or done == settings.steps):
                record |= validation.record()
            if previews.due(done):
                record |= previews.record(done, ema.averages, metrics)
            if metrics:
                metrics.add({"step": done, **record})
            if stopping or done % settings.checkpoint_every == 0 or done == settings.steps:
                if metrics:
                    metrics.flush()
                writer.start(done, {"norms": guard.norms} | ({"step_times": times.state()} if times else {}))
            writer.poll()
            if stopping and done < settings.steps:
                writer.wait()
                raise Interrupted(f"stopped after step {done} of {settings.steps}; run again to go on from there")
        reached = writer.wait()
    assert reached is not None
    return reached


def take_step(
    settings: TrainSettings,
    task: StepConfig,
    engine: Engine,
    step: int,
    batches: list[Batch],
    stop: bool,
    meter: Meter,
    record: Record,
    max_norm: float = math.inf,
) -> bool:
    """One optimizer step over this rank's micro-batches; fills the record; True when any rank wants to stop.

    The loss is the mean over the samples of all ranks and micro-steps by their weights, so it does not depend on how many
    workers share the step. Neither do noise levels, which are spread evenly over the samples of the whole step. Where workers
    share samples, each counts as often among the weights as among the losses: once for each of them.
    """
    samples = [
        (key(seen, uid), counts)
        for batch in batches
        for uid, seen, counts in zip(batch.uids, batch.times_seen, (batch.weights > 0).tolist(), strict=True)
    ]
    weight, stopping = engine.all_sum([sum(float(batch.weights.sum()) for batch in batches), stop])
    quantile_of = stratified_quantiles(task.seed, engine.all_gather([name for name, counts in samples if counts]))
    # A sample of weight 0 only keeps ranks in step, and must not move the others' noise levels, or workers would matter.
    quantile_of |= {name: 0.5 for name, _ in samples if name not in quantile_of}
    results: list[tuple[Batch, list[float], Tensor]] = []
    for position, batch in enumerate(batches):
        inputs = make_noisy_batch(task, batch, quantile_of, engine.device)
        with meter.forward(inputs, batch.weights.tolist()):
            losses_B = losses(engine.forward, inputs)
        share_B = batch.weights.to(engine.device) / weight
        # Times 0 would not silence a NaN, so a sample of weight 0 is left out.
        loss = torch.where(share_B > 0, losses_B * share_B, torch.zeros_like(losses_B)).sum()
        engine.backward(loss, last=position == len(batches) - 1)
        results.append((batch, inputs.times, losses_B.detach()))
    done = shared(
        [one for batch, times, losses_B in results for one in outcomes(task, batch, times, losses_B.tolist())], engine
    )
    parts = breakdown(done, "loss")
    if not math.isfinite(parts["loss"]):
        names = ", ".join(one.uid for one in done if not math.isfinite(one.loss))
        raise NonFiniteLossError(
            f"step {step + 1}: the loss is {parts['loss']}, from samples {names}; nothing was updated. Lower lr, or run `worldloom verify`"
        )
    lr = settings.lr_at(step)
    try:
        norm = engine.step(lr, max_norm)
    except NonFiniteGradientError as error:
        names = ", ".join(dict.fromkeys(engine.all_gather([uid for batch in batches for uid in batch.uids])))
        raise NonFiniteLossError(
            f"step {step + 1}: {error}, from samples {names}; nothing was updated. Lower lr"
        ) from error
    if norm > max_norm and engine.rank == 0:
        log.warning("step %d skipped: the gradient's norm is %.3g, and the most is %.3g", step + 1, norm, max_norm)
    record |= {**parts, "skipped": int(norm > max_norm), "lr": lr, "grad_norm": norm}
    record |= {"samples": len(done), "epoch": batches[0].epoch}
    return stopping > 0
