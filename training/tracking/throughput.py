"""How fast a step was: operations against what the device could do, ranks against each other, and memory. Resources nothing but torch."""

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

# Shape suffixes: R ranks, M stretches of a step after each of which ranks wait for each other.

Moment = float | torch.cuda.Event


def operations(model: ModelSettings, inputs: NoisyBatch, weights: Sequence[float]) -> tuple[float, float]:
    """Operations of training on a micro-batch: the model's, and the hardware's.

    The model's are three times those of the way forward, since the way back takes twice as many, of each sample that counts (Chowdhery et
    al. 2022, appendix B). The hardware's add what is computed twice to save memory (Korthikanti et al. 2022), and samples of weight 0.
    """
    useful = done = 0.0
    for latent, text, weight in zip(inputs.noisy, inputs.condition.texts, weights, strict=True):
        forward = model.flops(model.tokens(*latent.shape[1:]), len(text))
        useful += 3 * forward * (weight > 0)
        done += (3 + model.recompute_share) * forward
    return useful, done


def idle_share(seconds_RM: Sequence[Sequence[float]]) -> float:
    """Share of all ranks' time that goes by waiting for the slowest one, from their seconds in each stretch: 0 to 1 - 1 / R."""
    slowest_s: float = sum(max(column) for column in zip(*seconds_RM, strict=True))
    mean_s = sum(sum(row) for row in seconds_RM) / len(seconds_RM)
    return max(0.0, 1 - mean_s / slowest_s)


def by_rank(engine: Engine, own: Sequence[float]) -> list[list[float]]:
    """What each rank says, by rank: one sum, to which each adds a row of its own. All say as many numbers."""
    width = len(own)
    rows = [0.0] * (engine.world_size * width)
    rows[engine.rank * width : (engine.rank + 1) * width] = own
    rows = engine.all_sum(rows)
    return [rows[start : start + width] for start in range(0, len(rows), width)]


def host_memory_gb() -> float:
    """The most memory this process has had so far, pages shared with others included."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9


class Meter:
    """Measures a run's steps, on every rank. Of each step: `start`, `loaded`, `forward` around each way forward, `read`.

    What is measured of ranks is their ways forward, by events on a GPU, for which nobody waits. Under ZeRO 0 to 2 nothing is communicated
    in them, but among ranks that share samples, whose work is even; and the way back takes as much longer on all ranks. Ranks wait for
    each other where gradients are reduced: after each micro-step under stage 2, after the last one under 0 and 1. Stage 3 fetches weights
    in the way forward itself, in which all then wait for the slowest, so there it cannot be told.
    """

    def __init__(self, settings: TrainSettings, engine: Engine) -> None:
        self._model, self._engine, self._stage = settings.model, engine, settings.zero_stage
        self._context_parallel = settings.context_parallel
        self._peak_tflops = settings.peak_tflops or peak_tflops(engine.device, settings.precision)
        self.forward_s = 0.0
        """Seconds of this rank's own ways forward in the step that was read last."""
        self.tokens: list[int] = []
        """Of each sample in these, last pictures that are given included."""
        self.start()

    def start(self) -> None:
        """A step begins, with waiting for its data."""
        self._started_s = time.perf_counter()
        self._data_wait_s = 0.0
        self._operations = 0.0, 0.0
        self.tokens, self._n_useful = [], 0
        self._forwards: list[tuple[Moment, Moment]] = []

    def loaded(self) -> None:
        """The step's data has come."""
        self._data_wait_s = time.perf_counter() - self._started_s

    @contextlib.contextmanager
    def forward(self, inputs: NoisyBatch, weights: Sequence[float]) -> Iterator[None]:
        """Around the way forward of a micro-batch, whose samples weigh so much.

        Ranks that share samples share the operations. What is little and each of them does, as to enter tokens and texts, is counted once.
        """
        useful, done = (count / self._context_parallel for count in operations(self._model, inputs, weights))
        self._operations = self._operations[0] + useful, self._operations[1] + done
        tokens = [self._model.tokens(*latent.shape[1:]) for latent in inputs.noisy]
        self.tokens += tokens
        self._n_useful += sum(count for count, weight in zip(tokens, weights, strict=True) if weight > 0)
        before = self._now()
        yield
        self._forwards.append((before, self._now()))

    def read(self) -> dict[str, Any]:
        """What all ranks measured of the step that ends here; every rank calls it.

        `memory_gb` is the most since it was read before, so nothing between two steps is lost.
        """
        engine, on_gpu = self._engine, self._engine.device.type == "cuda"
        memory_gb = torch.cuda.max_memory_allocated(engine.device) / 1e9 if on_gpu else 0.0
        own = [*self._operations, self._n_useful, self._data_wait_s, memory_gb, host_memory_gb()]
        seconds_M = [_seconds(before, after) for before, after in self._forwards]
        self.forward_s = sum(seconds_M)
        ranks = by_rank(engine, [*own, *self._stretches(seconds_M)])
        step_s = time.perf_counter() - self._started_s
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(engine.device)
        useful, done, n_useful, waits_s, device_gb, host_gb = zip(*(row[: len(own)] for row in ranks), strict=True)
        # Each rank of those that share a sample has counted it.
        tokens = int(sum(n_useful)) // self._context_parallel
        tflops, hardware_tflops = (sum(each) / 1e12 / step_s / engine.world_size for each in (useful, done))
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

    def _stretches(self, seconds_M: list[float]) -> list[float]:
        """Seconds of this rank's ways forward, given for each micro-step, between each two moments at which ranks wait for each other."""
        return [] if self._stage == 3 else seconds_M if self._stage == 2 else [sum(seconds_M)]

    def _now(self) -> Moment:
        if self._engine.device.type != "cuda":
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._engine.device))
        return event


def _seconds(before: Moment, after: Moment) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3
    assert isinstance(before, float)
    assert isinstance(after, float)
    return after - before
