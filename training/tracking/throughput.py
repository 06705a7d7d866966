"""Throughput of a step: FLOP/s and MFU, waiting between ranks, and memory. Loads torch alone."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from training.tracking.gpu_peaks import peak_tflops

if TYPE_CHECKING:
    from training.engine import Engine
    from training.model import ModelSettings
    from training.settings import TrainSettings
    from training.step import NoisyBatch

# Shape suffixes: R ranks, M parts of a step, after each of which ranks wait for each other.

Timestamp = float | torch.cuda.Event


def training_flops(model: ModelSettings, inputs: NoisyBatch, weights: Sequence[float]) -> tuple[float, float]:
    """Return the FLOPs of training on a micro-batch: the model's, and the hardware's.

    The model's are three times those of the forward pass, since the backward pass takes twice as many, over samples
    with a weight (Chowdhery et al. 2022, appendix B). The hardware's include activations that are computed twice to
    save memory (Korthikanti et al. 2022), and samples of weight 0.
    """
    model_flops = hardware_flops = 0.0
    for latent, text, weight in zip(inputs.noisy, inputs.condition.texts, weights, strict=True):
        forward = model.flops(model.tokens(*latent.shape[1:]), len(text))
        model_flops += 3 * forward * (weight > 0)
        hardware_flops += (3 + model.recompute_share) * forward
    return model_flops, hardware_flops


def idle_share(seconds_RM: Sequence[Sequence[float]]) -> float:
    """Return the share of all ranks' time spent waiting for the slowest, from their seconds in each part: 0 to 1 - 1/R."""
    slowest_s: float = sum(max(column) for column in zip(*seconds_RM, strict=True))
    mean_s = sum(sum(row) for row in seconds_RM) / len(seconds_RM)
    return max(0.0, 1 - mean_s / slowest_s)


def gather_rows(engine: Engine, own: Sequence[float]) -> list[list[float]]:
    """Return the numbers of every rank, by rank, through one sum of a table with a row per rank."""
    width = len(own)
    rows = [0.0] * (engine.world_size * width)
    rows[engine.rank * width : (engine.rank + 1) * width] = own
    rows = engine.all_sum(rows)
    return [rows[start : start + width] for start in range(0, len(rows), width)]


def host_memory_gb() -> float:
    """Return the peak memory of this process in GB, shared pages included."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9


class Meter:
    """Measures the steps of a run, on every rank: `start`, `loaded`, `forward` around each forward pass, then `read`.

    Waiting is derived from forward passes, timed by CUDA events that nothing waits for. Under ZeRO 0 to 2 a forward
    pass communicates only among ranks that share samples, whose work is even, and the backward pass takes
    proportionally longer on all ranks. Ranks wait for each other when gradients are reduced: after each micro-batch
    under stage 2, after the last one under stages 0 and 1. Stage 3 gathers weights within the forward pass, where all
    ranks wait for the slowest, so waiting cannot be separated.
    """

    def __init__(self, settings: TrainSettings, engine: Engine) -> None:
        self._model, self._engine, self._stage = settings.model, engine, settings.zero_stage
        self._context_parallel = settings.context_parallel
        self._peak_tflops = settings.peak_tflops or peak_tflops(engine.device, settings.precision)
        self.forward_s = 0.0
        """Seconds of this rank's forward passes in the step that was read last."""
        self.tokens: list[int] = []
        """Tokens of each sample in them, last-frame latents included."""
        self.start()

    def start(self) -> None:
        """Begin a step, which first waits for its data."""
        self._started_s = time.perf_counter()
        self._data_wait_s = 0.0
        self._flops = 0.0, 0.0
        self.tokens, self._n_useful = [], 0
        self._forwards: list[tuple[Timestamp, Timestamp]] = []

    def loaded(self) -> None:
        """Mark that the step's data has been loaded."""
        self._data_wait_s = time.perf_counter() - self._started_s

    @contextlib.contextmanager
    def forward(self, inputs: NoisyBatch, weights: Sequence[float]) -> Iterator[None]:
        """Measure the forward pass of a micro-batch in the block; `weights` are those of its samples.

        Ranks that share samples share the FLOPs. Small work that each of them repeats, such as embedding tokens and
        texts, is counted once.
        """
        model_flops, hardware_flops = (
            count / self._context_parallel for count in training_flops(self._model, inputs, weights)
        )
        self._flops = self._flops[0] + model_flops, self._flops[1] + hardware_flops
        tokens = [self._model.tokens(*latent.shape[1:]) for latent in inputs.noisy]
        self.tokens += tokens
        self._n_useful += sum(count for count, weight in zip(tokens, weights, strict=True) if weight > 0)
        before = self._now()
        yield
        self._forwards.append((before, self._now()))

    def read(self) -> dict[str, Any]:
        """End the step and return its record over all ranks; every rank calls it.

        `memory_gb` is the peak since the last call, so peaks between two steps are included.
        """
        engine, on_gpu = self._engine, self._engine.device.type == "cuda"
        memory_gb = torch.cuda.max_memory_allocated(engine.device) / 1e9 if on_gpu else 0.0
        own = [*self._flops, self._n_useful, self._data_wait_s, memory_gb, host_memory_gb()]
        seconds_M = [_seconds(before, after) for before, after in self._forwards]
        self.forward_s = sum(seconds_M)
        ranks = gather_rows(engine, [*own, *self._parts(seconds_M)])
        step_s = time.perf_counter() - self._started_s
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(engine.device)
        model_flops, hardware_flops, n_useful, waits_s, device_gb, host_gb = zip(
            *(row[: len(own)] for row in ranks), strict=True
        )
        # Every rank that shares a sample has counted it.
        tokens = int(sum(n_useful)) // self._context_parallel
        tflops, hardware_tflops = (
            sum(each) / 1e12 / step_s / engine.world_size for each in (model_flops, hardware_flops)
        )
        record = {
            "tokens": tokens,
            "step_s": step_s,
            "data_wait_s": max(waits_s),
            "tokens_per_s": tokens / step_s,
            "tflops": tflops,
        }
        if self._peak_tflops:
            record |= {"mfu": tflops / self._peak_tflops, "hfu": hardware_tflops / self._peak_tflops}
        record |= {"memory_gb": max(device_gb)} if on_gpu else {}
        record |= {"host_memory_gb": max(host_gb)}
        seconds_RM = [row[len(own) :] for row in ranks]
        if len(ranks) > 1 and seconds_RM[0]:
            record |= {
                "idle_share": idle_share(seconds_RM),
                "slowest_rank": max(range(len(ranks)), key=lambda rank: sum(seconds_RM[rank])),
            }
        return record

    def _parts(self, seconds_M: list[float]) -> list[float]:
        """Return the seconds of this rank's forward passes between synchronisations, from those of each micro-batch."""
        return [] if self._stage == 3 else seconds_M if self._stage == 2 else [sum(seconds_M)]

    def _now(self) -> Timestamp:
        if self._engine.device.type != "cuda":
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._engine.device))
        return event


def _seconds(before: Timestamp, after: Timestamp) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3
    assert isinstance(before, float)
    assert isinstance(after, float)
    return after - before
