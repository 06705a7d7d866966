"""`worldloom quarantine`: failed rows are listed, and only they are retried, only on request."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import Field

from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.commands.quarantine import ASIDE, Failure, clear, failures, of_class, take_out
from pipelines.curation import Curation, inspect, run_segments
from pipelines.engine import tables
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Context, Step, TableFunction, column, map_rows
from pipelines.engine.worker import Job, failed_rows
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from pipelines.steps.keep import Bound, Keep
from tests.support.command_line import CommandLine
from tests.support.executors import InlineExecutor
from tests.support.killing import Killed, Killer
from tests.support.toy_recipes import final_rows
from tests.support.toy_steps import Pick, Score, Split, log_call

pytestmark = pytest.mark.slow


class Read(Step):
    """A step that reads the number of clips from a file's text; the text `broken` raises."""

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
    """A step that weighs each clip. Clips that the file `failing` lists as `NAME:NUMBER` fail."""

    name: str = "weigh"
    calls: str | None = Field(None, exclude=True)
    failing: str = Field("", exclude=True)

    def reads(self) -> tuple[str, ...]:
        return "number", "source"

    def writes(self) -> tuple[pa.Field, ...]:
        return (column("weight", pa.float64(), "weight"),)

    def open(self, context: Context) -> TableFunction:
        def weigh(row: dict[str, Any]) -> dict[str, Any]:
            log_call(self.calls, row["uid"])
            if f"{Path(row['source']).stem}:{row['number']:g}" in Path(self.failing).read_text().split():
                raise ArithmeticError("of the device")
            return {"weight": 1.0 + row["number"]}

        return lambda table: map_rows(table, self.writes(), weigh)


class Bench:
    """A folder with three sources, a recipe over them, and the calls of its steps.

    `weigh` runs in the segment of `split` or in that of `pick`.
    """

    def __init__(self, folder: Path, segment: str = "split") -> None:
        self.folder = folder
        self.failing = folder / "failing"
        # After `pick` it must be a clip whose number no other clip has: any other may be a duplicate, by its uid.
        self.failing.write_text("b:1\n" if segment == "split" else "a:2\n")
        (folder / "in").mkdir()
        for name, text in {"a": "3", "b": "2", "c": "broken"}.items():
            (folder / "in" / f"{name}.toy").write_text(text)
        weigh = Weigh(calls=self._log("weigh"), failing=str(self.failing))
        score, keep = Score(calls=self._log("score")), Keep(name="keep", number=Bound(max=9))  # type: ignore[call-arg]
        read = Read(calls=self._log("read"))
        steps: Sequence[Step] = (
            [read, Split(), score, weigh, keep, Pick()]
            if segment == "split"
            else [read, Split(), score, Pick(), weigh, keep]
        )
        sources = (SourceSettings(videos=str(folder / "in" / "*.toy")),)
        self.recipe = Recipe(
            name="toy", out=str(folder / "out"), sources=sources, curate=tuple(steps), max_failed_share=1.0
        )

    def _log(self, name: str) -> str:
        return str(self.folder / f"calls.{name}")

    def calls(self) -> dict[str, int]:
        """Return how often each step was called since the last call of this method."""
        found = {}
        for name in ("read", "score", "weigh"):
            path = Path(self._log(name))
            found[name] = len(path.read_text().split()) if path.exists() else 0
            path.write_text("")
        return found

    def mend(self, name: str, text: str) -> None:
        """Replace a file's content and keep its size and modification time, so that its uid does not change."""
        path = self.folder / "in" / f"{name}.toy"
        stat = path.stat()
        path.write_text(text.ljust(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def retry(self, error: str | None = None) -> Curation:
        """Retry the failed rows, or those of one error class, as `worldloom quarantine --retry` does."""
        take_out(self.recipe, of_class(failures(inspect(self.recipe)), error))
        curation = run_segments(self.recipe, inline)
        clear(self.recipe.tables_uri)
        return curation


def straight(bench: Bench) -> list[dict[str, Any]]:
    """Return the rows of a run into an empty folder."""
    out = bench.folder / "straight"
    shutil.rmtree(out, ignore_errors=True)
    return final_rows(run_segments(bench.recipe.model_copy(update={"out": str(out)}), inline))


def test_failures_are_listed_by_step_and_class(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    curation = run_segments(bench.recipe, inline)
    source, clip = failures(curation)
    assert (source.step, source.error, Path(source.source).name, source.span_s) == ("read", "ValueError", "c.toy", None)
    assert source.message.endswith("cannot be decoded: broken")
    assert (clip.step, clip.error, clip.message, Path(clip.source).name) == (
        "weigh",
        "ArithmeticError",
        "of the device",
        "b.toy",
    )
    assert [failure.uid for failure in of_class([source, clip], "ArithmeticError")] == [clip.uid]
    message = r"no failure of that class; there are ArithmeticError \(1\), ValueError \(1\)"
    with pytest.raises(ConfigError, match=message):
        of_class([source, clip], "OSError")


def test_a_mended_file_is_retried_only_on_request(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run_segments(bench.recipe, inline)
    bench.mend("c", "2")
    bench.calls()
    assert [failure.step for failure in failures(run_segments(bench.recipe, inline))] == ["read", "weigh"]
    assert bench.calls() == {"read": 0, "score": 0, "weigh": 0}
    again = bench.retry("ValueError")
    assert [failure.step for failure in failures(again)] == ["weigh"]
    assert bench.calls() == {"read": 1, "score": 2, "weigh": 2}
    assert final_rows(again) == straight(bench)
    assert all(account.balanced for account in ledger(again))


@pytest.mark.parametrize("segment", ["split", "pick"])
def test_a_failed_clip_is_retried_without_its_siblings(tmp_path: Path, segment: str) -> None:
    bench = Bench(tmp_path, segment)
    n_rows = len(final_rows(run_segments(bench.recipe, inline)))
    bench.failing.write_text("")
    bench.calls()
    again = bench.retry("ArithmeticError")
    assert [failure.step for failure in failures(again)] == ["read"]
    # The score of the clip and the values of its siblings are reused.
    assert bench.calls() == {"read": 0, "score": 0, "weigh": 1}
    assert final_rows(again) == straight(bench)
    assert len(final_rows(again)) == n_rows
    assert not [entry for entry in storage.list_files(bench.recipe.tables_uri) if ASIDE in entry.uri]


def test_a_row_that_fails_again_is_failed_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = final_rows(run_segments(bench.recipe, inline))
    assert final_rows(bench.retry()) == first


class DyingExecutor(InlineExecutor):
    """An executor whose worker dies on the clips of the source `a`."""

    def run_tasks(self, job: Job, tasks: list[pa.Table], /) -> Iterator[pa.Table]:
        for task in tasks:
            for single in tables.split_task(task):
                rows = tables.read_task(single)
                dies = rows["source"][0].as_py().endswith("a.toy") and job.segment.label == "split"
                yield from [failed_rows(job, single, "WorkerDied: twice")] if dies else inline.run_tasks(job, [single])


def test_a_row_that_killed_its_worker_is_retried(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    curation = run_segments(bench.recipe, DyingExecutor())
    assert [(failure.step, failure.error) for failure in failures(curation)][1] == ("split", "WorkerDied")
    bench.calls()
    again = bench.retry("WorkerDied")
    assert bench.calls() == {"read": 0, "score": 3, "weigh": 3}
    assert final_rows(again) == straight(bench)


def test_a_row_is_taken_out_of_tables_of_other_recipes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run_segments(bench.recipe, inline)
    steps = list(bench.recipe.curate)
    steps[4] = Keep(name="keep", number=Bound(max=0.5))  # type: ignore[call-arg]
    other = bench.recipe.model_copy(update={"curate": tuple(steps)})
    run_segments(other, inline)
    bench.mend("c", "2")
    bench.retry("ValueError")
    assert [failure.step for failure in failures(run_segments(other, inline))] == ["weigh"]


class ReadingExecutor(InlineExecutor):
    """An executor that stops after the first segment."""

    def run_tasks(self, job: Job, tasks: list[pa.Table], /) -> Iterator[pa.Table]:
        if job.segment.label != "read":
            raise RuntimeError("stopped")
        return inline.run_tasks(job, tasks)


def test_failures_of_an_incomplete_curation_are_listed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert failures(inspect(bench.recipe)) == []
    with pytest.raises(RuntimeError, match="stopped"):
        run_segments(bench.recipe, ReadingExecutor())
    assert [failure.step for failure in failures(inspect(bench.recipe))] == ["read"]
    bench.mend("c", "1")
    assert [failure.step for failure in failures(bench.retry())] == ["weigh"]


def test_a_retry_killed_at_any_point_can_be_repeated(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run_segments(bench.recipe, inline)
    whole = tmp_path / "whole"
    shutil.copytree(bench.recipe.out_uri, whole)
    bench.mend("c", "2")
    bench.failing.write_text("")
    expected = straight(bench)

    def take(wanted: list[Failure], at: int | None) -> int:
        """Take the rows out, killed at a kill point; return the number of kill points."""
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, at)
            take_out(bench.recipe, wanted)
            return killer.kill_points

    n_kill_points = take(failures(inspect(bench.recipe)), None)
    assert n_kill_points > 8
    for at in range(n_kill_points):
        shutil.rmtree(bench.recipe.out_uri)
        shutil.copytree(whole, bench.recipe.out_uri)
        with pytest.raises(Killed):
            take(failures(inspect(bench.recipe)), at)
        # A run before the retry makes no difference.
        if at % 2:
            run_segments(bench.recipe, inline)
        again = bench.retry()
        rows = final_rows(again)
        assert rows == expected, at
        assert len({row["uid"] for row in rows}) == len(rows)


def test_the_command_lists_failures_and_retries_none(worldloom: CommandLine, scan_recipe: Path) -> None:
    broken = scan_recipe.parent / "in" / "a.mp4"
    broken.write_bytes(b"no video")
    assert worldloom("curate", scan_recipe, "--inline").exit_code == 0
    listed = worldloom("quarantine", scan_recipe)
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert "1 failed rows in 1 files" in listed.stdout
    broken.write_bytes(b"another version")
    os.utime(broken, ns=(1, 1))
    incomplete = worldloom("quarantine", scan_recipe, "--retry")
    assert incomplete.exit_code == 0
    assert "curation is not complete: scan has 0 of 1 rows" in incomplete.stderr


def test_the_command_exits_1_if_a_retried_row_fails_again(worldloom: CommandLine, scan_recipe: Path) -> None:
    (scan_recipe.parent / "in" / "a.mp4").write_bytes(b"no video")
    assert worldloom("curate", scan_recipe, "--inline").exit_code == 0
    retried = worldloom("quarantine", scan_recipe, "--retry", "--inline")
    assert retried.exit_code == 1
    assert "1 failed rows in 1 files" in retried.stdout
