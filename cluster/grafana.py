"""A Grafana dashboard of our metrics. `python -m cluster.grafana > cluster/grafana_dashboard.json` writes its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import metrics
from cluster.metrics import Metric

FILE = Path(__file__).parent / "grafana_dashboard.json"
RATE_WINDOW = "5m"
"""Over which rates are averaged: many times the 10 s between two reports of a worker."""
WIDTH, HEIGHT = 12, 8
"""Size of a panel on Grafana's grid, which is 24 wide."""
DATA_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True)
class Panel:
    """A diagram over time: a query of Prometheus, with the tags by which its lines are named."""

    title: str
    query: str
    tags: tuple[str, ...]
    unit: str = "short"


def panels() -> list[Panel]:
    """Return the diagrams, in reading order."""

    def rate(metric: Metric, *tags: str) -> str:
        return f"sum by ({', '.join(tags)}) (rate({metric.exported_name}[{RATE_WINDOW}]))"

    def newest(metric: Metric) -> str:
        return f"max by (run) ({metric.exported_name})"

    busy = f"{rate(metrics.STEP_CPU_SECONDS, 'step')} / {rate(metrics.STEP_SECONDS, 'step')}"
    by_fate, by_step, by_run = ("step", "fate"), ("step",), ("run",)
    return [
        Panel("Rows per minute by step and fate", f"60 * {rate(metrics.ROWS, *by_fate)}", by_fate),
        Panel("Hours of footage per hour by step and fate", f"3600 * {rate(metrics.HOURS, *by_fate)}", by_fate),
        Panel("Workers in each step", rate(metrics.STEP_SECONDS, "step"), by_step),
        Panel("Busy share of CPUs by step (scan and encode decode)", busy, by_step, "percentunit"),
        Panel("Retries per minute", f"60 * {rate(metrics.RETRIES, 'of')}", ("of",)),
        Panel("Tokens per second", newest(metrics.TOKENS_PER_S), by_run),
        Panel("Training loss", newest(metrics.LOSS), by_run),
        Panel("Validation loss", newest(metrics.VAL_LOSS), by_run),
        Panel("Training step", newest(metrics.TRAIN_STEP), by_run),
        Panel("Idle share of training workers", newest(metrics.IDLE_SHARE), by_run, "percentunit"),
        Panel("Wait for data per step", newest(metrics.DATA_WAIT_S), by_run, "s"),
    ]


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it. It asks for a Prometheus data source."""
    return {
        "title": "worldloom",
        "uid": "worldloom",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(panels())],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, 24 // WIDTH)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "datasource": DATA_SOURCE,
                "expr": panel.query,
                "legendFormat": " ".join(f"{{{{{tag}}}}}" for tag in panel.tags),
            }
        ],
    }


def text() -> str:
    """Return the content of the dashboard's file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")
