"""Throughput of a training step: FLOP/s and MFU, waiting between ranks, and memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cluster.arrays import Float64Array
from training.engine import Engine
from training.model import ModelSettings
from training.settings import TrainSettings
from training.step import NoisyBatch
from training.tracking.gpu_peaks import peak_tflops

# Shape suffixes: R ranks, K values of a measurement, M parts of a step; ranks wait for each other at the end of each
# part.

N_VALUES = 6
"""Values of a measurement before the seconds of forward passes."""

TimePoint = float | torch.cuda.Event
"""Seconds of the CPU's clock, or an event of the GPU's."""


def training_flops(model: ModelSettings, batch: NoisyBatch, weights: Sequence[float]) -> tuple[float, float]:
    """Return the FLOPs of training on a micro-batch: those of the model (for MFU) and of the hardware (for HFU).

    The model's are three times those of the forward pass, because the backward pass takes twice as many (Chowdhery et
    al. 2022, appendix B). Samples of weight 0 do not count. The hardware's include them, and the activations that are
    computed twice to save memory (Korthikanti et al. 2022).
    """
    model_flops = hardware_flops = 0.0
    for latent, text, weight in zip(batch.noisy, batch.condition.texts, weights, strict=True):
        forward = model.flops(model.tokens(*latent.shape[1:]), len(text))
        model_flops += 3 * forward * (weight > 0)
        hardware_flops += (3 + model.recompute_share) * forward
    return model_flops, hardware_flops


def idle_share(seconds_RM: Float64Array) -> float:
    """Return the share of all ranks' time that is spent waiting for the slowest rank, 0 to 1 - 1/R.

    `seconds_RM` is the time that each rank works in each part of a step.
    """
    slowest_s = float(seconds_RM.max(axis=0).sum())
    return max(0.0, 1 - float(seconds_RM.sum()) / len(seconds_RM) / slowest_s) if slowest_s else 0.0


def row_of_rank(engine: Engine, own: Sequence[float]) -> list[float]:
    """Return the values of this rank in a table `[R, K]` that has a row per rank and is 0 elsewhere, flat.

    The sum of these over ranks has the values of every rank. All ranks must pass the same number of values.
    """
    width = len(own)
    row = [0.0] * (engine.world_size * width)
    row[engine.rank * width : (engine.rank + 1) * width] = own
    return row


def host_memory_gb() -> float:
    """Return the peak memory of this process in GB, shared pages included."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9


@dataclass(frozen=True)
class Measurement:
    """The measurements of one rank in a step."""

    values: list[float]
    """FLOPs of the model and of the hardware, tokens, seconds of waiting for data, peak memory of device and host in
    GB, and the seconds of the forward passes in each part of the step."""
    step_s: float


class Meter:
    """A meter of a run's steps; every rank has one.

    Per step, call `start`, `loaded`, `forward` around each forward pass, and `measure`. `summary` makes a record of the
    measurements of all ranks.

    The time that ranks wait for each other is derived from their forward passes. On a GPU these are timed by events, so
    the CPU does not wait for them: `measure` is called after the gradient norm was read, which follows them. Under ZeRO
    0 to 2 a forward pass communicates only among ranks that share samples, whose work is even, and the backward pass
    takes longer by the same factor on all ranks. Ranks wait for each other when gradients are reduced: after each
    micro-batch under stage 2, after the last one under stages 0 and 1. Stage 3 gathers weights within the forward pass,
    in which all ranks wait for the slowest, so waiting cannot be measured.
    """

    def __init__(self, settings: TrainSettings, engine: Engine) -> None:
        self._model, self._engine, self._stage = settings.model, engine, settings.zero_stage
        self._context_parallel = settings.context_parallel
        self._peak_tflops = settings.peak_tflops or peak_tflops(engine.device, settings.precision)
        self.start()

    def start(self) -> None:
        """Begin a step, which first waits for its data."""
        self._started_s = time.perf_counter()
        self._data_wait_s = 0.0
        self._flops = 0.0, 0.0
        self._n_counted = 0
        self._forwards: list[tuple[TimePoint, TimePoint]] = []

    def loaded(self) -> None:
        """Mark that the step's data has been loaded."""
        self._data_wait_s = time.perf_counter() - self._started_s

    @contextlib.contextmanager
    def forward(self, batch: NoisyBatch, weights: Sequence[float]) -> Iterator[None]:
        """Measure the block, which is the forward pass of a micro-batch with samples of these weights.

        Ranks that share samples share the FLOPs. The little work that each of them repeats, such as embedding tokens
        and texts, is counted once.
        """
        model_flops, hardware_flops = (
            count / self._context_parallel for count in training_flops(self._model, batch, weights)
        )
        self._flops = self._flops[0] + model_flops, self._flops[1] + hardware_flops
        tokens = [self._model.tokens(*latent.shape[1:]) for latent in batch.noisy]
        self._n_counted += sum(count for count, weight in zip(tokens, weights, strict=True) if weight > 0)
        before = self._now()
        yield
        self._forwards.append((before, self._now()))

    def measure(self) -> Measurement:
        """End the step and return what this rank measured.

        `memory_gb` is the peak since the last call, so peaks between two steps are included.
        """
        on_gpu, device = self._engine.device.type == "cuda", self._engine.device
        step_s = time.perf_counter() - self._started_s
        memory_gb = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else 0.0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        own = [*self._flops, self._n_counted, self._data_wait_s, memory_gb, host_memory_gb()]
        seconds_M = [_seconds(before, after) for before, after in self._forwards]
        return Measurement([*own, *self._parts(seconds_M)], step_s)

    def summary(self, rows_RK: Float64Array, step_s: float) -> dict[str, Any]:
        """Return the part of a step's record that follows from the values that all ranks measured."""
        flops_R2, rest_RK, seconds_RM = rows_RK[:, :2], rows_RK[:, 2:N_VALUES], rows_RK[:, N_VALUES:]
        n_counted, wait_s, device_gb, host_gb = rest_RK.T
        # Every rank that shares a sample has counted it.
        tokens = int(n_counted.sum()) // self._context_parallel
        tflops, hardware_tflops = (flops_R2.sum(axis=0) / 1e12 / step_s / len(rows_RK)).tolist()
        record = {
            "tokens": tokens,
            "step_s": step_s,
            "data_wait_s": float(wait_s.max()),
            "tokens_per_s": tokens / step_s,
            "tflops": tflops,
        }
        if self._peak_tflops:
            record |= {"mfu": tflops / self._peak_tflops, "hfu": hardware_tflops / self._peak_tflops}
        record |= {"memory_gb": float(device_gb.max())} if self._engine.device.type == "cuda" else {}
        record |= {"host_memory_gb": float(host_gb.max())}
        if len(rows_RK) > 1 and seconds_RM.size:
            record |= {"idle_share": idle_share(seconds_RM), "slowest_rank": int(seconds_RM.sum(axis=1).argmax())}
        return record

    def _parts(self, seconds_M: list[float]) -> list[float]:
        """Return the seconds of this rank's forward passes in each part of a step, from those of each micro-batch."""
        if self._stage == 3:
            return []
        return seconds_M if self._stage == 2 else [sum(seconds_M)]

    def _now(self) -> TimePoint:
        if self._engine.device.type != "cuda":
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._engine.device))
        return event


def _seconds(before: TimePoint, after: TimePoint) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3
    assert isinstance(before, float)
    assert isinstance(after, float)
    return after - before
