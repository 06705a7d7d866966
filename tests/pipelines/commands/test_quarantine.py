"""What failed is listed, and done again only on request: what failed and no more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pydantic import Field

from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.commands.quarantine import ASIDE, Failure, of_class, clear, failures, take_out
from pipelines.curation import Curation, inspect, run_segments
from pipelines.engine import tables
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.engine.worker import Job, failed_rows
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from pipelines.steps.keep import Bound, Keep
from tests.support.killing import Killed, Killer
from tests.support.toy_steps import Pick, Score, Split, log_call


class Read(Step):
    """Reads how many clips a file has; one that says `broken` cannot be read."""

    name: str = "read"
    rows_per_part = 4
    calls: str | None = Field(None, exclude=True)

    def reads(self) -> tuple[str, ...]:
        return ("source",)

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("n_clips", pa.int64(), "clips"),)

    def open(self, context: Context) -> TableFunction:
        def read(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, row["uid"])
            text = Path(row["source"]).read_text()
            if "broken" in text:
                raise ValueError(f"{row['source']}: cannot be decoded: {text}")
            return {"n_clips": int(text)}

        return lambda table: map_rows(table, self.writes(), read)


class Weigh(Step):
    """Gives each clip a weight; clips whose number stands in a file of troubles fail."""

    name: str = "weigh"
    calls: str | None = Field(None, exclude=True)
    troubles: str = Field("", exclude=True)

    def reads(self) -> tuple[str, ...]:
        return "number", "source"

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("weight", pa.float64(), "weight"),)

    def open(self, context: Context) -> TableFunction:
        def weigh(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, row["uid"])
            if f"{Path(row['source']).stem}:{row['number']:g}" in Path(self.troubles).read_text().split():
                raise MemoryError("of the device")
            return {"weight": 1.0 + row["number"]}

        return lambda table: map_rows(table, self.writes(), weigh)


class Bench:
    """A folder with sources, a recipe over them, and what its steps were called with."""

    def __init__(self, folder: Path, where: str = "split") -> None:
        self.folder = folder
        self.troubles = folder / "troubles"
        # After `pick` a clip of its own number, which is no duplicate whatever the uids are.
        self.troubles.write_text("b:1\n" if where == "split" else "a:2\n")
        (folder / "in").mkdir()
        for name, text in {"a": "3", "b": "2", "c": "broken"}.items():
            (folder / "in" / f"{name}.toy").write_text(text)
        weigh = Weigh(calls=self._log("weigh"), troubles=str(self.troubles))
        score, keep = Score(calls=self._log("score")), Keep(name="keep", number=Bound(max=9))  # type: ignore[call-arg]
        read = Read(calls=self._log("read"))
        steps: Sequence[Step] = (
            [read, Split(), score, weigh, keep, Pick()]
            if where == "split"
            else [read, Split(), score, Pick(), weigh, keep]
        )
        sources = (SourceSettings(videos=str(folder / "in" / "*.toy")),)
        self.recipe = Recipe(name="toy", out=str(folder / "out"), sources=sources, curate=tuple(steps))

    def _log(self, name: str) -> str:
        return str(self.folder / f"calls.{name}")

    def calls(self) -> dict[str, int]:
        """How often each step was called since this was asked last."""
        found = {}
        for name in ("read", "score", "weigh"):
            path = Path(self._log(name))
            found[name] = len(path.read_text().split()) if path.exists() else 0
            path.write_text("")
        return found

    def mend(self, name: str, text: str) -> None:
        """Other content of the same size and modification time, which no listing can tell from what was there."""
        path = self.folder / "in" / f"{name}.toy"
        stat = path.stat()
        path.write_text(text.ljust(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def retry(self, error: str | None = None) -> Curation:
        take_out(self.recipe, of_class(failures(inspect(self.recipe)), error))
        curation = run_segments(self.recipe, inline)
        clear(self.recipe.tables_uri)
        return curation


def content(curation: Curation) -> list[dict[str, Any]]:
    return list(curation.final.rows.read().to_pylist())


def straight(bench: Bench) -> list[dict[str, Any]]:
    """What a run into an empty folder gives."""
    out = bench.folder / "straight"
    shutil.rmtree(out, ignore_errors=True)
    return content(run_segments(bench.recipe.model_copy(update={"out": str(out)}), inline))


def test_failures_are_listed_by_step_and_class(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    curation = run_segments(bench.recipe, inline)
    source, clip = failures(curation)
    assert (source.step, source.error, Path(source.source).name, source.span_s) == ("read", "ValueError", "c.toy", None)
    assert source.message.endswith("cannot be decoded: broken")
    assert (clip.step, clip.error, clip.message, Path(clip.source).name) == (
        "weigh",
        "MemoryError",
        "of the device",
        "b.toy",
    )
    assert [failure.uid for failure in of_class([source, clip], "MemoryError")] == [clip.uid]
    with pytest.raises(ConfigError, match=r"no failure of that class; there are MemoryError \(1\), ValueError \(1\)"):
        of_class([source, clip], "OSError")


def test_a_file_mended_in_place_is_done_again_on_request_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run_segments(bench.recipe, inline)
    bench.mend("c", "2")
    bench.calls()
    assert [failure.step for failure in failures(run_segments(bench.recipe, inline))] == ["read", "weigh"]
    assert bench.calls() == {"read": 0, "score": 0, "weigh": 0}
    again = bench.retry("ValueError")
    assert [failure.step for failure in failures(again)] == ["weigh"]
    assert bench.calls() == {"read": 1, "score": 2, "weigh": 2}
    assert content(again) == straight(bench)
    assert all(account.balanced for account in ledger(again))


@pytest.mark.parametrize("where", ["split", "pick"])
def test_a_clip_that_failed_is_done_again_without_its_siblings(tmp_path: Path, where: str) -> None:
    bench = Bench(tmp_path, where)
    n_rows = len(content(run_segments(bench.recipe, inline)))
    bench.troubles.write_text("")
    bench.calls()
    again = bench.retry("MemoryError")
    assert [failure.step for failure in failures(again)] == ["read"]
    # Its score was computed before it failed, and its siblings' scores and weights are there too.
    assert bench.calls() == {"read": 0, "score": 0, "weigh": 1}
    assert content(again) == straight(bench)
    assert len(content(again)) == n_rows
    assert not [entry for entry in storage.list_files(bench.recipe.tables_uri) if ASIDE in entry.uri]


def test_what_fails_again_is_failed_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = content(run_segments(bench.recipe, inline))
    assert content(bench.retry()) == first


def test_a_row_that_killed_its_worker_is_done_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def dying(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        for task in tasks:
            for single in tables.split_task(task):
                rows = tables.read_task(single)
                dies = rows["source"][0].as_py().endswith("a.toy") and job.segment.label == "split"
                yield from [failed_rows(job, single, "WorkerDied: twice")] if dies else inline.run_tasks(job, [single])

    dead = run_segments(bench.recipe, SimpleNamespace(run_tasks=dying, rows=inline.rows))
    assert [(failure.step, failure.error) for failure in failures(dead)][1] == ("split", "WorkerDied")
    bench.calls()
    again = bench.retry("WorkerDied")
    assert bench.calls() == {"read": 0, "score": 3, "weigh": 3}
    assert content(again) == straight(bench)


def test_tables_of_another_recipe_lose_the_row_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run_segments(bench.recipe, inline)
    steps = list(bench.recipe.curate)
    steps[4] = Keep(name="keep", number=Bound(max=0.5))  # type: ignore[call-arg]
    other = bench.recipe.model_copy(update={"curate": tuple(steps)})
    run_segments(other, inline)
    bench.mend("c", "2")
    bench.retry("ValueError")
    assert [failure.step for failure in failures(run_segments(other, inline))] == ["weigh"]


def test_an_incomplete_curation_is_listed_as_far_as_it_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert failures(inspect(bench.recipe)) == []

    def only_reads(job: Job, tasks: list[pa.Table]) -> Iterator[pa.Table]:
        if job.segment.label != "read":
            raise RuntimeError("stopped")
        yield from inline.run_tasks(job, tasks)

    with pytest.raises(RuntimeError, match="stopped"):
        run_segments(bench.recipe, SimpleNamespace(run_tasks=only_reads, rows=inline.rows))
    assert [failure.step for failure in failures(inspect(bench.recipe))] == ["read"]
    bench.mend("c", "1")
    assert [failure.step for failure in failures(bench.retry())] == ["weigh"]


def test_killed_at_any_file_operation_a_retry_can_be_repeated(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run_segments(bench.recipe, inline)
    whole = tmp_path / "whole"
    shutil.copytree(bench.recipe.out_uri, whole)
    bench.mend("c", "2")
    bench.troubles.write_text("")
    expected = straight(bench)

    def take(wanted: list[Failure], at: int | None) -> int:
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, at)
            take_out(bench.recipe, wanted)
            return killer.moments

    moments = take(failures(inspect(bench.recipe)), None)
    assert moments > 8
    for at in range(moments):
        shutil.rmtree(bench.recipe.out_uri)
        shutil.copytree(whole, bench.recipe.out_uri)
        with pytest.raises(Killed):
            take(failures(inspect(bench.recipe)), at)
        # A run in between does not hurt.
        if at % 2:
            run_segments(bench.recipe, inline)
        again = bench.retry()
        rows = content(again)
        assert rows == expected, at
        assert len({row["uid"] for row in rows}) == len(rows)
