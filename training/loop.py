"""The training loop of one rank: load, step, record, validate, checkpoint, export. Imports neither Ray nor
DeepSpeed.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster import storage
from cluster.telemetry import log
from training.adapters.dropout import keyed_dropout
from training.assembly import TrainingRun, make_planner
from training.checkpoints.adapter_export import write_adapter_export
from training.checkpoints.best_export import BestExport
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.export import write_export
from training.checkpoints.model_card import ModelCard
from training.checkpoints.reader import load_checkpoint, newest_whole_checkpoint
from training.checkpoints.schedule import CheckpointSchedule
from training.checkpoints.starting_weights import weights_to_start_from
from training.checkpoints.writer import CheckpointWriter
from training.data.dataset import CaptionMix
from training.data.loader import Loader, LoaderSettings
from training.engine import Engine, NonFiniteGradientError
from training.inputs import StepAssembler, StepInputs, add_noise
from training.settings import TrainSettings
from training.step import mse_losses
from training.stopping import Interrupted, NonFiniteLossError, stop_signals
from training.tracking.breakdown import weighted_sums
from training.tracking.metrics import Metrics, Record
from training.tracking.previews import Previews
from training.tracking.step_records import StepRecords, TakenStep
from training.tracking.throughput import Meter
from training.validation import Validation

NORM_WINDOW = 128
"""Number of most recent gradient norms whose median is taken."""
MIN_NORMS = 16
"""Fewest norms for a median; with fewer, no step is skipped."""


@dataclass(frozen=True)
class LoopResult:
    """The export and the last checkpoint that a call of `train_loop` wrote or found."""

    export_uri: str
    checkpoint_uri: str
    step: int


class SpikeDetector:
    """The limit for the next gradient norm: `factor` times the median of the last norms; no limit if `factor` is None.

    The limit depends on the norms alone, so it is the same on every rank and after a restart. Norms of skipped steps
    count too, so if norms have risen for good, skipping ends after half a window.
    """

    def __init__(self, factor: float | None, norms: Sequence[float] = ()) -> None:
        self._factor = factor
        self.norms = list(norms)
        """The last norms, oldest first; the whole state."""

    def limit(self) -> float:
        """Return the largest norm of a step that is not skipped."""
        if self._factor is None or len(self.norms) < MIN_NORMS:
            return math.inf
        return self._factor * statistics.median(self.norms)

    def add(self, norm: float) -> None:
        """Add the norm of a step, taken or skipped."""
        self.norms = [*self.norms, norm][-NORM_WINDOW:]


def train_loop(settings: TrainSettings, manifest_uri: str, run_uri: str, seed: int, device: torch.device) -> LoopResult:
    """Train to `settings.steps` from the newest checkpoint of the run, or from the start; every rank calls it.

    Raises `NonFiniteLossError`, and `Interrupted` after SIGINT or SIGTERM.
    """
    run = TrainingRun.open(settings, manifest_uri, run_uri, seed, device)
    checkpoint = newest_whole_checkpoint(run_uri, run.engine)
    if checkpoint is None and run.base is None and (weights := weights_to_start_from(settings)) is not None:
        run.start_from(weights)
    state = load_checkpoint(checkpoint, run.engine, run.ema) if checkpoint else {}
    run.check_base(state)
    best = BestExport(run_uri, run.engine, state.get("best"), settings.keep_checkpoints)
    if checkpoint is None or checkpoint.step < settings.steps:
        checkpoint = _train(run, checkpoint.step if checkpoint else 0, state, best)
    return LoopResult(_export(run, checkpoint.step, best), checkpoint.uri, checkpoint.step)


def _export(run: TrainingRun, step: int, best: BestExport) -> str:
    """Write the export of a run that ends after `step` steps, of its best step or the last one, and return its URI.

    Every rank calls it.
    """
    export_uri = storage.join(run.run_uri, "export")
    if run.settings.export == "last" or not best.copy_to(export_uri, step):
        about = {"trained_steps": step, "export": run.settings.export}
        _write_export(run, export_uri, run.model_card(step).model_copy(update=about))
    run.engine.barrier()
    return export_uri


def _write_export(run: TrainingRun, export_uri: str, card: ModelCard) -> None:
    """Write the export of the model as it is now; every rank calls it."""
    raw = run.engine.full_parameters()
    with run.engine.swapped_weights(run.ema.averages):
        averaged = run.engine.full_parameters()
    if run.engine.rank > 0:
        return
    raw, averaged = run.with_frozen(raw), run.with_frozen(averaged)
    if card.adapter is None:
        write_export(export_uri, raw, averaged, run.step_config.null_text, card)
    else:
        write_adapter_export(export_uri, averaged, run.step_config.null_text, card)


def _train(run: TrainingRun, start_step: int, state: Mapping[str, Any], best: BestExport) -> Checkpoint:
    """Take steps `start_step` to `settings.steps`, counted from 0, and return the last checkpoint.

    `state` is the result of `load_checkpoint`, empty at the start of a run.
    """
    settings, engine = run.settings, run.engine
    validation = None
    if settings.validate_every:
        validation = Validation(run.manifest_uri, settings, run.step_config, engine)
    previews = Previews(run)
    spikes = SpikeDetector(settings.skip_grad_norm, state.get("norms", ()))
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(contextlib.closing(CheckpointWriter(run.run_uri, engine, run.ema, settings)))
        loader = stack.enter_context(_open_loader(run, start_step))
        metrics = stack.enter_context(_open_metrics(run, start_step)) if engine.rank == 0 else None
        stop_requested = stack.enter_context(stop_signals())
        schedule = CheckpointSchedule(settings)
        inputs_of_steps = iter(loader)
        meter = Meter(settings, engine)
        records = StepRecords(engine, run.loss_parts, meter, metrics)
        for step in range(start_step, settings.steps):
            meter.start()
            planned, inputs = next(inputs_of_steps)
            meter.loaded()
            assert planned == step
            try:
                taken = take_step(run, step, inputs, meter, spikes.limit())
                # That of the step before, if it has not been read yet.
                records.finish()
            except NonFiniteLossError:
                # All ranks raise it, so they can finish the record and the current checkpoint together.
                with contextlib.suppress(NonFiniteLossError):
                    records.finish()
                writer.wait()
                raise
            spikes.add(taken.values["grad_norm"])
            if not taken.values["skipped"]:
                run.ema.update(engine.weight_shards(), step)
            done = step + 1
            records.start(done, taken, stop_requested(), schedule.asks())
            if validation and (done % settings.validate_every == 0 or done == settings.steps):
                records.add(_validate(run, validation, best, done))
            if previews.due(done):
                records.add(previews.record(done, run.ema.averages, metrics))
            is_saved = schedule.is_planned(done)
            if is_saved or not reads_late(engine.device):
                records.finish()
            if records.stop_requested or records.save_requested or is_saved:
                records.finish()
                if metrics:
                    metrics.flush()
                kept = best.checkpoint_state()
                base = {"base": run.base.identity} if run.base else {}
                writer.start(done, {"norms": spikes.norms} | base | ({"best": kept} if kept else {}))
                records.save_requested = False
                schedule.saved()
            writer.poll()
            if records.stop_requested and done < settings.steps:
                writer.wait()
                raise Interrupted(f"stopped after step {done} of {settings.steps}; the same command resumes")
        checkpoint = writer.wait()
    assert checkpoint is not None
    return checkpoint


def _validate(run: TrainingRun, validation: Validation, best: BestExport, done: int) -> Record:
    """Return the validation loss of the averaged weights after `done` steps, and keep their export if it is the lowest.

    The averaged weights are measured because they are the ones to sample from.
    """
    with run.engine.swapped_weights(run.ema.averages, computing=True):
        record = validation.record()

    def write(uri: str, step: int, val_loss: float) -> None:
        _write_export(run, uri, run.model_card(step).model_copy(update={"val_loss": val_loss}))

    if record and run.settings.export == "best":
        best.offer(done, record["val_loss"], write)
    return record


def _open_loader(run: TrainingRun, start_step: int) -> Loader[StepInputs]:
    """Return the loader of this rank's inputs from `start_step` on."""
    seed, engine = run.step_config.seed, run.engine
    captions = CaptionMix(run.settings.captions, seed) if run.settings.captions else None
    settings = LoaderSettings(engine.data_rank, engine.data_world_size, start_step, captions=captions)
    assembler = StepAssembler(run.step_config, run.dataset.uid_hashes, run.loss_parts)
    return Loader(run.dataset, make_planner(run.dataset, run.settings, seed), settings, assembler)


def _open_metrics(run: TrainingRun, start_step: int) -> Metrics:
    """Return the writer of the run's records, which also writes the settings with the seed and the data's
    fingerprint.
    """
    settings = run.settings
    recorded = settings.model_dump(mode="json") | {"seed": run.step_config.seed, "data": run.dataset.info.fingerprint}
    return Metrics(run.run_uri, start_step, settings.log_every, settings.trackers, recorded)


def reads_late(device: torch.device) -> bool:
    """Return whether a step's record is read only when the next step has been launched.

    A GPU would otherwise idle from the end of each step until the host has read its sums and launched the next one.
    Nothing that decides on the next step is read late: the gradient norm, which skips spikes and refuses losses that
    are not finite, is read before each update. Only requests to stop take effect a step later.
    """
    return device.type == "cuda"


def take_step(run: TrainingRun, step: int, inputs: StepInputs, meter: Meter, max_norm: float = math.inf) -> TakenStep:
    """Take one optimizer step over this rank's micro-batches; every rank calls it.

    The loss is the weighted mean over the samples of all ranks and micro-batches, so it does not depend on the number
    of workers. Neither do the noise levels, which are spread evenly over the samples of the whole step.

    Workers that share samples each count them, in the number of samples as in the loss. If the gradient norm is above
    `max_norm`, the weights stay unchanged. Raises `NonFiniteLossError` on all ranks, before any weight changes, if the
    gradient is not finite. A loss that is not finite has such a gradient, so it need not be read before the update.
    """
    engine, config = run.engine, run.step_config
    total_weight = inputs.n_samples * engine.context_parallel
    sums_P2 = torch.zeros(len(run.loss_parts.names), 2, dtype=torch.float64, device=engine.device)
    losses: list[Tensor] = []
    for index, micro_batch in enumerate(inputs.micro_batches):
        noisy = add_noise(config, micro_batch, engine.device)
        with keyed_dropout(run.settings.adapter, engine.device, config.seed, step, index, engine.rank):
            with meter.forward(noisy, micro_batch.weights):
                losses_B = mse_losses(engine.forward, noisy)
            share_B = noisy.weights_B / total_weight
            # A factor of 0 would let NaN through, so a sample of weight 0 is left out of the sum.
            loss = torch.where(share_B > 0, losses_B * share_B, torch.zeros_like(losses_B)).sum()
            engine.backward(loss, last=index == len(inputs.micro_batches) - 1)
        losses.append(losses_B.detach())
        sums_P2 += weighted_sums(noisy.members_PB, losses[-1], noisy.weights_B)
    lr = run.settings.lr_at(step)
    try:
        norm = engine.step(lr, max_norm)
    except NonFiniteGradientError as error:
        raise NonFiniteLossError(f"step {step + 1}: {_cause(engine, inputs, losses, error)}") from error
    if norm > max_norm and engine.rank == 0:
        log.warning("step %d skipped: the gradient norm is %.3g, over the limit of %.3g", step + 1, norm, max_norm)
    values = {"skipped": int(norm > max_norm), "lr": lr, "grad_norm": norm}
    return TakenStep(sums_P2, values | {"samples": inputs.n_samples, "epoch": inputs.epoch})


def _cause(engine: Engine, inputs: StepInputs, losses: Sequence[Tensor], error: NonFiniteGradientError) -> str:
    """Return which samples have a loss that is not finite, or else all that the gradient is of; every rank calls it."""
    samples = [
        (uid, loss)
        for micro_batch, losses_B in zip(inputs.micro_batches, losses, strict=True)
        for uid, loss, weight in zip(micro_batch.uids, losses_B.tolist(), micro_batch.weights, strict=True)
        if weight > 0
    ]
    (total,) = engine.all_sum([sum(loss for _, loss in samples)])
    if math.isfinite(total):
        names = dict.fromkeys(engine.all_gather([uid for uid, _ in samples]))
        return f"{error}, from samples {', '.join(names)}; nothing was updated. Lower lr"
    names = dict.fromkeys(engine.all_gather([uid for uid, loss in samples if not math.isfinite(loss)]))
    return (
        f"the loss is {total}, from samples {', '.join(names)}; nothing was updated. "
        "Lower lr, or run `worldloom verify`"
    )
