"""Metrics as Ray's exporter shows them, and the dashboard that asks for them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

from cluster import grafana, metrics
from tests.support.toy_recipes import keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Split

SAMPLE = re.compile(r"^(ray_worldloom_\w+)\{(.*)\} ([\d.e+-]+)$", re.MULTILINE)


def asked_for() -> list[str]:
    """Return the names of metrics in the dashboard's file."""
    targets = [target for panel in json.loads(grafana.FILE.read_text())["panels"] for target in panel["targets"]]
    return [name for target in targets for name in re.findall(r"\bray_\w+", target["expr"])]


def test_the_dashboard_is_that_of_the_metrics() -> None:
    assert grafana.FILE.read_text() == grafana.text(), "python -m cluster.grafana > cluster/grafana_dashboard.json"
    assert set(asked_for()) == {metric.exported_name for metric in metrics.METRICS}
    assert set(metrics.METRICS) == {value for value in vars(metrics).values() if isinstance(value, metrics.Metric)}


def test_panels_do_not_overlap() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in grafana.dashboard()["panels"]]
    assert len({place[:2] for place in places}) == len(places)
    assert all(x in (0, 12) and (w, h) == (12, 8) for x, _, w, h in places)


def exported() -> dict[tuple[str, str, str], float]:
    """Return the sums of what the node's exporter shows, by name and the tags step and fate, of and run."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    sums: dict[tuple[str, str, str], float] = {}
    for name, labels, value in SAMPLE.findall(text):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        key = (name, tags.get("step", tags.get("run", "")), tags.get("fate", tags.get("of", "")))
        sums[key] = sums.get(key, 0.0) + float(value)
    return sums


@pytest.mark.slow
def test_a_run_is_seen_by_prometheus(tmp_path: Path, ray_session: None) -> None:
    from pipelines import run
    from pipelines.curation import run_segments
    from pipelines.steps.keep import Bound
    from training.tracking.metrics import Metrics

    before = exported()
    # 3 + 8 clips, numbered from 0: those above 5 are dropped.
    write_toys(tmp_path, ["a-3", "c-8", "broken-1"])
    run_segments(toy_recipe(tmp_path, [Measure(), Split(), keep(number=Bound(max=5))]), run)
    with Metrics(str(tmp_path / "run-1"), 0, 1, ()) as records:
        numbers = {"loss": 0.5, "val_loss": 0.25, "tokens_per_s": 1e3, "idle_share": 0.125, "data_wait_s": 0.5}
        records.add({"step": 7, **numbers})
    metrics.RETRIES.record(2, of="rows")
    expected = {
        ("ray_worldloom_rows_total", "measure", "kept"): 2,
        ("ray_worldloom_rows_total", "measure", "failed"): 1,
        ("ray_worldloom_rows_total", "keep", "kept"): 9,
        ("ray_worldloom_rows_total", "keep", "dropped"): 2,
        ("ray_worldloom_train_step", "run-1", ""): 7,
        ("ray_worldloom_loss", "run-1", ""): 0.5,
        ("ray_worldloom_retries_total", "", "rows"): 2,
    }

    def seen() -> dict[tuple[str, str, str], float]:
        now = exported()
        return {key: now.get(key, 0.0) - before.get(key, 0.0) for key in expected}

    deadline_s = time.monotonic() + 60
    while seen() != expected and time.monotonic() < deadline_s:
        time.sleep(1)
    assert seen() == expected
    # Toys have no duration, so their hours are not known.
    assert {name for name, _, _ in exported()} >= set(asked_for()) - {metrics.HOURS.exported_name}


def test_without_ray_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics.sys.modules, "ray", None)
    monkeypatch.setattr(metrics, "_exported", lambda metric: pytest.fail("recorded"))
    metrics.LOSS.record(1.0, run="run-1")
