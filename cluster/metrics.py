"""Metrics of a run for Prometheus, through the exporter that Ray has on each node.

In a process that is not connected to Ray nothing is recorded. Ray is imported only where it is connected.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A metric, by its name in Ray."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    tags: tuple[str, ...]

    @property
    def exported_name(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"

    def record(self, value: float, **tags: str) -> None:
        """Add to a counter, or set a gauge; do nothing without a connected Ray."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized() or (self.kind == "counter" and value <= 0):
            return
        exported = _exported(self)
        (exported.inc if self.kind == "counter" else exported.set)(value, tags)


@functools.cache
def _exported(metric: Metric) -> Any:
    from ray.util.metrics import Counter, Gauge

    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, description=metric.description, tag_keys=metric.tags)


ROWS = Metric("worldloom_rows", "counter", "Rows of tables by the step that gave them their fate.", ("step", "fate"))
HOURS = Metric("worldloom_hours", "counter", "Hours of footage of these rows.", ("step", "fate"))
STEP_SECONDS = Metric("worldloom_step_seconds", "counter", "Wall-clock seconds of workers in a step.", ("step",))
STEP_CPU_SECONDS = Metric("worldloom_step_cpu_seconds", "counter", "CPU seconds of workers in a step.", ("step",))
RETRIES = Metric("worldloom_retries", "counter", "Rows that were tried again, and restarts of training.", ("of",))
TRAIN_STEP = Metric("worldloom_train_step", "gauge", "Optimizer steps taken.", ("run",))
LOSS = Metric("worldloom_loss", "gauge", "Training loss of the newest step.", ("run",))
VAL_LOSS = Metric("worldloom_val_loss", "gauge", "Newest validation loss.", ("run",))
TOKENS_PER_S = Metric("worldloom_tokens_per_s", "gauge", "Tokens of all workers per second.", ("run",))
IDLE_SHARE = Metric("worldloom_idle_share", "gauge", "Share of time that workers wait for the slowest.", ("run",))
DATA_WAIT_S = Metric("worldloom_data_wait_s", "gauge", "Seconds of the newest step spent waiting for data.", ("run",))

METRICS = (
    ROWS,
    HOURS,
    STEP_SECONDS,
    STEP_CPU_SECONDS,
    RETRIES,
    TRAIN_STEP,
    LOSS,
    VAL_LOSS,
    TOKENS_PER_S,
    IDLE_SHARE,
    DATA_WAIT_S,
)
"""All of them."""

OF_RECORDS = {
    "step": TRAIN_STEP,
    "loss": LOSS,
    "val_loss": VAL_LOSS,
    "tokens_per_s": TOKENS_PER_S,
    "idle_share": IDLE_SHARE,
    "data_wait_s": DATA_WAIT_S,
}
"""Gauges by the key of a training record that they show."""
