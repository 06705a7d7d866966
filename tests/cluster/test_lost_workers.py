"""Errors of lost workers, and lost nodes that Ray notices late."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import NodeDiedError, ObjectLostError, RaySystemError

from cluster import lost_workers
from cluster.lost_workers import dead_nodes, is_worker_death, node_was_lost


def test_errors_that_a_death_caused_are_deaths() -> None:
    error = RuntimeError("Ray Data stopped")
    error.__cause__ = NodeDiedError("gone")
    assert is_worker_death(error)
    assert is_worker_death(ObjectLostError("ff" * 28, None, ""))
    assert not is_worker_death(RaySystemError("unknown"))


def test_a_lost_node_may_be_noticed_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not node_was_lost(dead_nodes()), "Ray is not connected"
    alive = {"a": True, "b": True}
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: [{"NodeID": name, "Alive": is_alive} for name, is_alive in alive.items()],
    )
    monkeypatch.setattr(lost_workers, "ray", ray)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        alive["b"] = len(waits) < 3

    clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=sleep)
    monkeypatch.setattr(lost_workers, "time", clock)
    before = dead_nodes()
    assert node_was_lost(before)
    assert len(waits) == 3
    assert not node_was_lost(dead_nodes())
    assert sum(waits) > lost_workers.NOTICE_S
    del alive["b"]
    n_waits = len(waits)
    assert not node_was_lost(dead_nodes()), "the only node"
    assert len(waits) == n_waits
