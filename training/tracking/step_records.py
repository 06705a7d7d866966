"""The records of training steps, whose sums over ranks are read when they no longer keep the device waiting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.arrays import Float64Array
from training.engine import Engine
from training.stopping import NonFiniteLossError
from training.tracking.breakdown import LossParts
from training.tracking.metrics import Metrics, Record
from training.tracking.throughput import Measurement, Meter, row_of_rank

# Shape suffixes: P parts of the loss, K measurements of a rank, R ranks.


class PendingSum:
    """The sum over ranks of a float64 vector, on its way to the host. Every rank makes one of the same length."""

    def __init__(self, engine: Engine, values: Tensor) -> None:
        """Start the sum, which may change `values`, and the copy of its result to the host."""
        if engine.world_size > 1:
            dist.all_reduce(values)
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(
                values, non_blocking=True
            )
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> Float64Array:
        """Return the sum, and wait for it if necessary."""
        if self._event is not None:
            self._event.synchronize()
        found: Float64Array = self._values.numpy()
        return found


@dataclass(frozen=True)
class TakenStep:
    """A training step that this rank has launched."""

    sums_P2: Tensor
    """The `weighted_sums` of the losses of this rank's samples."""
    values: Record
    """The values that all ranks know: learning rate, gradient norm, number of samples, and so on."""


@dataclass
class _Unread:
    done: int
    sums: PendingSum
    measurement: Measurement
    values: Record
    added: Record


class StepRecords:
    """The records of a run's steps; every rank has one, and rank 0 writes them.

    A step's losses, measurements and requests of all ranks are one sum of a vector: no step communicates Python
    objects. The sum is started after the step, and may be read after the next one has been launched.
    """

    def __init__(self, engine: Engine, parts: LossParts, meter: Meter, metrics: Metrics | None) -> None:
        self._engine, self._parts, self._meter, self._metrics = engine, parts, meter, metrics
        self._unread: _Unread | None = None
        self.stop_requested = False
        """Whether a rank asked to stop in one of the steps whose records have been written."""
        self.save_requested = False
        """Whether a rank asked for a checkpoint in one of them; the loop resets it when one is written."""

    def start(self, done: int, step: TakenStep, stop_requested: bool, save_requested: bool) -> None:
        """End the measurement of a step, after which `done` steps are done, and start its sum over ranks."""
        assert self._unread is None
        measurement = self._meter.measure()
        own = torch.tensor(
            [stop_requested, save_requested, *row_of_rank(self._engine, measurement.values)], dtype=torch.float64
        )
        own = own.to(step.sums_P2.device, non_blocking=True)
        sums = PendingSum(self._engine, torch.cat((step.sums_P2.flatten(), own)))
        self._unread = _Unread(done, sums, measurement, step.values, {})

    def add(self, values: Mapping[str, float]) -> None:
        """Add values to the record of the step that was started last."""
        assert self._unread is not None
        self._unread.added |= values

    def finish(self) -> None:
        """Write the record of the step that was started last; do nothing if it has been written.

        Raises `NonFiniteLossError` on all ranks if its loss is not finite.
        """
        if self._unread is None:
            return
        step, self._unread = self._unread, None
        sums, n_parts = step.sums.read(), len(self._parts.names)
        loss = self._parts.record(sums[: 2 * n_parts].reshape(n_parts, 2).tolist(), "loss")
        rows_RK = sums[2 * n_parts + 2 :].reshape(self._engine.world_size, -1)
        speed = self._meter.summary(rows_RK, step.measurement.step_s)
        self.stop_requested |= bool(sums[2 * n_parts] > 0)
        self.save_requested |= bool(sums[2 * n_parts + 1] > 0)
        if not math.isfinite(loss["loss"]):
            raise NonFiniteLossError(
                f"step {step.done}: the loss is {loss['loss']}, though its gradient is finite, so the weights were "
                "updated. Resume from a checkpoint with a lower lr, or run `worldloom verify`"
            )
        if self._metrics:
            self._metrics.add({"step": step.done, **loss, **step.values, **speed, **step.added})
