"""The executor on Ray: the tables of the inline executor, and a worker that dies costs one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from ray.exceptions import NodeDiedError

from cluster.resources import ClusterSize, Resources
from pipelines import inline, run
from pipelines.curation import run_segments
from pipelines.engine import packed_tables
from pipelines.engine.step import RunError, Step
from pipelines.engine.worker import Job, Worker
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


class LostNodes:
    """Streams of tasks whose workers die with their nodes: each ends after as many reports as a list says, and those
    of later segments not at all.
    """

    def __init__(self, n_done: list[int], nodes_are_lost: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_done, self.sizes = n_done, list[tuple[int, bool]]()
        monkeypatch.setattr(run, "_stream", self.stream)
        monkeypatch.setattr(run, "node_was_lost", lambda before: nodes_are_lost.pop(0))

    def stream(
        self, job: Job, tasks: list[pa.Table], numbers: list[int], tolerate_deaths: bool = False
    ) -> Iterator[tuple[int, pa.Table]]:
        n_done = len(numbers)
        if self.n_done:
            self.sizes.append((len(tasks), tolerate_deaths))
            n_done = self.n_done.pop(0)
        for number in numbers[:n_done]:
            table = tasks[number]
            for stage in job.stages():
                table = Worker(stage)(table)
            yield number, table
        if n_done < len(numbers) and not tolerate_deaths:
            raise NodeDiedError("gone")


@pytest.mark.parametrize(
    ("n_done", "nodes_are_lost", "sizes", "n_failed"),
    [
        # The tasks are of two, two and one rows. Lost nodes fail no row, however often tasks are begun again.
        ([1, 0, 1, 1], [True, True, True], [(3, False), (2, False), (2, False), (1, False)], 0),
        ([1, 2, 1], [False, True], [(3, False), (3, True), (1, True)], 0),
        ([1, 2], [False, False], [(3, False), (3, True)], 1),
        ([0] * 5 + [5], [True] * 5, [(3, False)] * 5 + [(5, True)], 0),
    ],
)
def test_rows_are_not_blamed_for_lost_nodes(
    n_done: list[int],
    nodes_are_lost: list[bool],
    sizes: list[tuple[int, bool]],
    n_failed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.engine.tables.task_size", lambda n_rows, rows_per_part: 2)
    write_toys(tmp_path, ["a-1", "b-1", "c-1", "d-1", "e-1"])
    lost = LostNodes(n_done, nodes_are_lost, monkeypatch)
    rows = final_rows(run_segments(toy_recipe(tmp_path, [Measure(), Split()]), run))
    assert lost.sizes == sizes
    assert [row["fate"] for row in rows].count("failed") == n_failed
    assert len(rows) == 5


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
