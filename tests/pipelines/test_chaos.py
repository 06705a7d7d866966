"""Curation under random misfortune ends as if undisturbed: balanced, with equal tables, and with nothing twice.

Everything runs in this process, so that an interleaving is decided by its seed. Killed drivers stop at a random file
operation. Workers die as Ray reports it, and go on writing after they were taken for dead.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest
from ray.exceptions import WorkerCrashedError

from cluster import storage
from cluster.leases import LeaseHeldError, lease
from cluster.unreadable import UnreadableError
from pipelines import run
from pipelines.curation import Curation, run_segments
from pipelines.engine import pending
from pipelines.engine.exclusions import read_records, unfinished_removals
from pipelines.engine.source_versions import VERSION_COLUMNS, unchanged_source
from pipelines.engine.step import Context, Divisible, Piece, RunError, TableFunction, column, map_rows
from pipelines.engine.table_index import index_table
from pipelines.engine.worker import Job, Worker
from pipelines.forgetting.request import forget
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from pipelines.steps.keep import Bound
from tests.support.executors import InlineExecutor
from tests.support.killing import Killed, void_leases
from tests.support.toy_recipes import keep, toy_file, toy_recipe, write_toys
from tests.support.toy_steps import Pick, Score, Split

NAMES = [f"{name}-{number}" for number, name in enumerate("abcdefgh")] + ["crash-2", "broken-1"]
N_EVENTS = 5
N_OPERATIONS = 60
"""File operations of a run, about: a kill at a later one does not happen."""


class Read(Divisible):
    """A step that reads the number of clips from a file; three and more are read in pieces, one a clip.

    A name with `broken` cannot be decoded.
    """

    name: str = "read"
    rows_per_part = 3

    def reads(self) -> tuple[str, ...]:
        return "source", *VERSION_COLUMNS

    def writes(self) -> tuple[pa.Field, ...]:
        return column("n_clips", pa.int64(), "clips"), column("text", pa.string(), "content of the file")

    def open(self, context: Context) -> TableFunction:
        def read(row: dict[str, Any]) -> dict[str, Any]:
            text = content(row)
            return {"n_clips": number_of(text), "text": text}

        return lambda table: map_rows(table, self.writes(), read)

    def divide(self, row: Mapping[str, Any]) -> Sequence[Piece]:
        count = number_of(content(row))
        return [Piece(i, count, {}, 1.0) for i in range(count)] if count > 2 else ()

    def run_piece(self, row: Mapping[str, Any], piece: Piece) -> bytes:
        return content(row).encode()

    def read_piece(self, data: bytes) -> str:
        return data.decode()

    def join(self, row: Mapping[str, Any], results: Sequence[str]) -> Mapping[str, Any]:
        (text,) = set(results)
        return {"n_clips": number_of(text), "text": text}


def content(row: Mapping[str, Any]) -> str:
    with unchanged_source(row):
        text = storage.read_bytes(row["source"]).decode()
    if text.startswith("broken"):
        raise ValueError("cannot be decoded")
    return text


def number_of(text: str) -> int:
    return int(text.split("-")[1]) % 5


class Chaos:
    """Patches of file operations, and of Ray's stream of tasks, that let things go wrong as a seed decides."""

    def __init__(self, seed: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rng = random.Random(seed)
        self.recipe = recipe
        self.countdown: int | None = None
        """Number of file operations until `at_end` is called; None for never."""
        self.at_end: Callable[[], None] = lambda: None
        self.store_is_away = False
        self.workers_die = False
        self.has_lease = False
        self.zombies: list[tuple[Job, pa.Table]] = []
        """Tasks of workers that were taken for dead."""
        atomic_output, remove, read_bytes = storage.atomic_output, storage.remove, storage.read_bytes

        @contextlib.contextmanager
        def output(uri: str) -> Iterator[BinaryIO]:
            self.count()
            with atomic_output(uri) as handle:
                yield handle
            self.count()

        def counted_remove(uri: str) -> None:
            self.count()
            remove(uri)
            self.count()

        def read(uri: str, *bounds: int) -> bytes:
            if self.store_is_away and uri.endswith(".toy"):
                raise UnreadableError(f"{uri}: the store is away")
            return read_bytes(uri, *bounds)

        monkeypatch.setattr(storage, "atomic_output", output)
        monkeypatch.setattr(storage, "remove", counted_remove)
        monkeypatch.setattr(storage, "read_bytes", read)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # takes most of the time, and no machine fails here
        monkeypatch.setattr(pending, "WAITS_S", ())
        monkeypatch.setattr(run, "_stream", self.stream)
        # A worker may have died with its node.
        monkeypatch.setattr(run, "node_was_lost", lambda before: self.rng.random() < 0.5)

    def count(self) -> None:
        if self.countdown is not None and threading.current_thread() is threading.main_thread():
            self.countdown -= 1
            if self.countdown <= 0:
                self.countdown = None
                self.at_end()

    def stream(
        self, job: Job, tasks: list[pa.Table], numbers: list[int], tolerate_deaths: bool = False
    ) -> Iterator[tuple[int, pa.Table]]:
        """Run tasks as Ray does: in any order, and a worker that dies ends the stream or, with `tolerate_deaths`, not.

        Zombies of earlier streams go on in between.
        """
        order = self.rng.sample(numbers, len(numbers))
        for number in order:
            self.wake_zombies(0.3)
            task = tasks[number]
            dies = "crash" in str(task.to_pylist()) and "read" in job.segment.labels
            if not dies and self.workers_die and not tolerate_deaths and self.rng.random() < 0.2:
                self.zombies += [(job, tasks[other]) for other in order if self.rng.random() < 0.5]
                dies = True
            if not dies:
                yield number, work(job, task)
            elif not tolerate_deaths:
                raise WorkerCrashedError

    def wake_zombies(self, share: float) -> None:
        """Let some zombies end their task. Some asked whether their stream had ended before it had."""
        for zombie in [zombie for zombie in self.zombies if self.rng.random() < share]:
            self.zombies.remove(zombie)
            job, task = zombie
            job = replace(job, end_marker="") if self.rng.random() < 0.5 else job
            with contextlib.suppress(RunError):
                if "crash" not in str(task.to_pylist()):
                    work(job, task)

    def second_run(self) -> None:
        """Check that a second command is refused while this one runs."""
        errors: list[BaseException] = []

        def take() -> None:
            try:
                with lease(self.recipe.out_uri, "tables"):
                    pass
            except LeaseHeldError as error:
                errors.append(error)

        thread = threading.Thread(target=contextvars.Context().run, args=(take,))
        thread.start()
        thread.join()
        assert errors or not self.has_lease, "a second command wrote to the same out"

    def kill(self) -> None:
        raise Killed

    def change_a_source(self) -> None:
        path = toy_file(Path(self.recipe.out_uri).parent, self.rng.choice(NAMES[:8]))
        if path.exists():
            path.write_text(f"{self.rng.choice('xyz')}-{self.rng.randrange(100)}")

    def curate(self) -> Curation | None:
        """Curate once; None if that did not come to its end."""
        try:
            with lease(self.recipe.out_uri, "tables"):
                self.has_lease = True
                try:
                    return run_segments(self.recipe, RayLikeExecutor())
                finally:
                    self.has_lease = False
        except (Killed, RunError):
            return None

    def forget_a_source(self) -> None:
        uris = [str(path) for path in sorted(Path(self.recipe.out_uri).parent.glob("in/[a-h]-*.toy"))]
        with contextlib.suppress(Killed):
            forget(self.recipe, self.rng.choice(uris))

    def event(self) -> None:
        """Let one thing go wrong, in or between runs."""
        kind = self.rng.choice(["kill", "workers", "second", "outage", "change", "forget", "kill forget"])
        self.countdown = self.rng.randrange(1, N_OPERATIONS)
        actions = {"second": self.second_run, "change": self.change_a_source}
        self.at_end = actions.get(kind, self.kill)
        if kind in ("workers", "outage", "forget"):
            self.countdown = None
        self.workers_die, self.store_is_away = kind == "workers", kind == "outage"
        if "forget" in kind:
            self.forget_a_source()
        else:
            self.curate()
        self.countdown, self.workers_die, self.store_is_away = None, False, False
        void_leases(self.recipe.out_uri)
        self.wake_zombies(0.5)
        if unfinished_removals(self.recipe.out_uri):
            forget(self.recipe)


class RayLikeExecutor(InlineExecutor):
    """The executor on Ray, with its stream of tasks replaced by that of `Chaos`."""

    def run_tasks(self, job: Job, tasks: list[pa.Table], /) -> Iterator[pa.Table]:
        return run.run_tasks(job, tasks)


def work(job: Job, task: pa.Table) -> pa.Table:
    table = task
    for stage in job.stages():
        table = Worker(stage)(table)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_chaos_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    write_toys(tmp_path, NAMES)
    steps = [Read(), Split(), keep(number=Bound(max=3)), Score(), Pick()]
    recipe = toy_recipe(tmp_path, steps).model_copy(update={"max_failed_share": 1.0})
    chaos = Chaos(seed, recipe, monkeypatch)
    for _ in range(N_EVENTS):
        chaos.event()
    curation = chaos.curate() or chaos.curate()
    assert curation is not None
    chaos.wake_zombies(1.0)
    curation = chaos.curate()
    assert curation is not None

    straight = recipe.model_copy(update={"out": str(tmp_path / "straight")})
    if read_records(recipe.out_uri):
        shutil.copytree(tmp_path / "out" / "forgotten", tmp_path / "straight" / "forgotten")
    undisturbed = run_segments(straight, RayLikeExecutor())
    assert all(account.balanced for account in ledger(curation))
    for one, other in zip(curation.segments, undisturbed.segments, strict=True):
        assert one.segment.fingerprint == other.segment.fingerprint
        assert one.rows.read().equals(other.rows.read()), one.segment.label
        assert index_table(one.folder, one.segment.input_column).n_doubled == 0
    assert [account.fates for account in ledger(curation)] == [account.fates for account in ledger(undisturbed)]
