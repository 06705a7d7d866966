"""The executor on Ray: the tables of the inline executor, and a worker that dies costs one row."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.resources import ClusterSize, Resources
from pipelines import inline, run
from pipelines.curation import run_segments
from pipelines.engine import packed_tables
from pipelines.engine.step import RunError, Step
from pipelines.steps.keep import Bound
from tests.support.toy_recipes import final_rows, keep, toy_recipe, write_toys
from tests.support.toy_steps import Measure, Pick, Score, Split

NAMES = ["a-3", "b-0", "c-8", "broken-1", "d-1", "e-5"]


def toy_steps(pooled: bool = False) -> list[Step]:
    """Return a step of every contract; a pooled `Score` runs in a stage of its own."""
    return [
        Measure(),
        Split(),
        keep(number=Bound(max=5)),
        Score(pooled=pooled),
        keep(score=Bound(max=9)),
        Pick(),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [False, True])
def test_ray_writes_the_tables_of_inline(tmp_path: Path, ray_session: None, pooled: bool) -> None:
    write_toys(tmp_path, NAMES)
    by_ray = run_segments(toy_recipe(tmp_path, toy_steps(pooled)), run)
    by_inline = run_segments(toy_recipe(tmp_path, toy_steps(pooled), out="inline"), inline)
    for one, other in zip(by_ray.segments, by_inline.segments, strict=True):
        assert one.segment.fingerprint == other.segment.fingerprint
        assert one.rows.read().equals(other.rows.read())


@pytest.mark.slow
def test_a_row_that_kills_its_worker_fails_alone(tmp_path: Path, ray_session: None) -> None:
    write_toys(tmp_path, [*NAMES, "crash-1"])
    rows = final_rows(run_segments(toy_recipe(tmp_path, toy_steps()), run))
    crashed = [row for row in rows if Path(row["source"]).stem == "crash-1"]
    assert [(row["fate"], row["fate_step"]) for row in crashed] == [("failed", "measure")]
    assert "WorkerDied" in crashed[0]["fate_reason"]
    assert sum(row["fate"] == "failed" for row in rows) == 2
    assert sum(row["clip_index"] is not None for row in rows) == 17


def test_later_stages_pass_a_fault_to_the_driver() -> None:
    def refuse(table: pa.Table) -> pa.Table:
        raise AssertionError("there are no rows")

    later = packed_tables.PackedWorker(lambda: refuse)
    fault = later(packed_tables.pack_fault(3, RunError("the disk is full")))
    assert fault["number"].to_pylist() == [3]
    with pytest.raises(RunError, match=r"^the disk is full$"):
        packed_tables.unpack(fault)


def test_pool_has_no_more_workers_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "cluster_size", lambda: ClusterSize(16.0, 4.0))
    by_cpus = [Resources(cpus=2, pooled=True, max_workers=max_workers) for max_workers in (None, 1, 3, 99)]
    assert [run._pool_limit(resources) for resources in by_cpus] == [8, 1, 3, 8]
    by_gpus = [Resources(gpus=0.5, pooled=True, max_workers=max_workers) for max_workers in (None, 1)]
    assert [run._pool_limit(resources) for resources in by_gpus] == [8, 1]
    monkeypatch.setattr(run, "cluster_size", lambda: ClusterSize(4.0, 0.0, may_grow=True))
    assert [run._pool_limit(resources) for resources in (*by_cpus, *by_gpus)] == [None, 1, 3, 99, None, 1]
