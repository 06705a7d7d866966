"""Curation while sources cannot be read: rows wait for the next run, and a run of failures ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from pydantic import Field

from cluster.unreadable import UnreadableError
from pipelines import inline
from pipelines.curation import inspect, run_segments
from pipelines.engine import pending, pieces
from pipelines.engine.step import Context, RunError, TableFunction, map_rows
from pipelines.ledger import ledger
from tests.support.executors import IdleExecutor
from tests.support.toy_recipes import final_rows, logged_calls, toy_recipe, write_toys
from tests.support.toy_steps import LongMeasure, Measure, Piece, Score, Split, log_call

NAMES = ["a-3", "b-2", "c-4", "d-1"]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "WAITS_S", ())


def check_store(away: str, row: dict[str, Any]) -> None:
    """Raise `UnreadableError` for a source whose name is in the file `away`."""
    if Path(row["source"]).stem in Path(away).read_text().split():
        raise UnreadableError(f"{row['source']}: the store is away")


class RemoteMeasure(Measure):
    """A `Measure` whose sources may be away. `broken` cannot be decoded."""

    away: str = Field("", exclude=True)

    def open(self, context: Context) -> TableFunction:
        def measure(row: dict[str, Any]) -> dict[str, Any]:
            stem = Path(row["source"]).stem
            log_call(self.calls, stem)
            check_store(self.away, row)
            if stem.startswith("broken"):
                raise ValueError(f"{stem}: no frame")
            return {"n_clips": int(stem.split("-")[1]), "size": 0.0}

        return lambda table: map_rows(table, self.writes(), measure)


class RemoteScore(Score):
    """A `Score` that reads the source of each clip with the number 1, which may be away."""

    away: str = Field("", exclude=True)

    def open(self, context: Context) -> TableFunction:
        def score(row: dict[str, Any]) -> dict[str, Any]:
            if row["number"] == 1:
                check_store(self.away, row)
            return {"score": row["number"] ** self.power}

        return lambda table: map_rows(table, self.writes(), score)


class RemoteLong(LongMeasure):
    """A `LongMeasure` whose sources may be away for its pieces after the first."""

    away: str = Field("", exclude=True)

    def run_piece(self, row: Any, piece: Piece) -> bytes:
        if piece.number:
            check_store(self.away, row)
        return super().run_piece(row, piece)


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """Return the file with the names of sources that cannot be read, all of which are written."""
    write_toys(tmp_path, NAMES)
    (tmp_path / "away").write_text("a-3 c-4")
    return tmp_path / "away"


@pytest.mark.slow
def test_unreadable_sources_are_pending_and_taken_next_time(tmp_path: Path, away: Path) -> None:
    calls = tmp_path / "calls"
    recipe = toy_recipe(tmp_path, [RemoteMeasure(calls=str(calls), away=str(away)), Split()])
    for _ in range(2):
        calls.write_text("")
        message = r"^measure: 2 of 4 rows are pending, .*in/[ac]-\d\.toy: the store is away\. Run again to take them"
        with pytest.raises(RunError, match=message):
            run_segments(recipe, inline)
        rows = inspect(recipe).segments[0].rows
        assert pc.value_counts(rows.rows["fate"]).to_pylist() == [{"values": "kept", "counts": 2}]
    assert sorted(logged_calls(calls)) == ["a-3", "c-4"]
    away.write_text("")
    calls.write_text("")
    done = run_segments(recipe, inline)
    assert sorted(logged_calls(calls)) == ["a-3", "c-4"]
    assert all(account.balanced for account in ledger(done))
    straight = run_segments(toy_recipe(tmp_path, [RemoteMeasure(away=str(away)), Split()], out="straight"), inline)
    assert final_rows(done) == final_rows(straight)


def test_a_source_with_an_unreadable_clip_loses_no_clip(tmp_path: Path, away: Path) -> None:
    recipe = toy_recipe(tmp_path, [Measure(), Split(), RemoteScore(away=str(away))])
    with pytest.raises(RunError, match=r"^split: 2 of 4 rows are pending"):
        run_segments(recipe, inline)
    left = {Path(row["source"]).stem for row in inspect(recipe).segments[-1].rows.read().to_pylist()}
    assert left == {"b-2", "d-1"}
    away.write_text("")
    done = run_segments(recipe, inline)
    assert len(final_rows(done)) == 3 + 2 + 4 + 1
    assert all(account.balanced for account in ledger(done))


def test_an_unreadable_piece_has_no_result(tmp_path: Path, away: Path) -> None:
    calls = tmp_path / "calls"
    recipe = toy_recipe(tmp_path, [RemoteLong(calls=str(calls), away=str(away)), Split()])
    with pytest.raises(RunError, match=r"^long_measure: 2 of 4 rows are pending, .*: the store is away"):
        run_segments(recipe, inline)
    assert pieces.planned(inspect(recipe).segments[0].folder)
    away.write_text("")
    calls.write_text("")
    done = run_segments(recipe, inline)
    assert sorted(logged_calls(calls)) == ["a-3:1", "a-3:2", "a-3:join", "c-4:1", "c-4:2", "c-4:3", "c-4:join"]
    assert not pieces.planned(done.segments[0].folder)
    assert {row["fate"] for row in final_rows(done)} == {"kept"}


def test_an_outage_ends_the_run(tmp_path: Path, away: Path) -> None:
    names = [f"e{i:02}-1" for i in range(2 * pending.MAX_IN_A_ROW)]
    write_toys(tmp_path, names)
    away.write_text(" ".join(names))
    calls = tmp_path / "calls"
    with pytest.raises(RunError, match=r"^measure: \d+ rows in a row cannot be read, the last: .*the store is away"):
        run_segments(toy_recipe(tmp_path, [RemoteMeasure(calls=str(calls), away=str(away)), Split()]), inline)
    assert len(logged_calls(calls)) < len(names)


def test_too_many_failed_sources_end_the_run(tmp_path: Path, away: Path) -> None:
    away.write_text("")
    write_toys(tmp_path, ["broken-1", "broken-2"])
    recipe = toy_recipe(tmp_path, [RemoteMeasure(away=str(away)), Split()])
    strict = recipe.model_copy(update={"max_failed_share": 0.2})
    message = r"^measure: 2 of 6 inputs failed \(33%\), more than max_failed_share 0\.2: 2 ValueError, as broken-\d: no"
    for executor in (inline, IdleExecutor()):
        with pytest.raises(RunError, match=message):
            run_segments(strict, executor)
    assert len(inspect(strict).segments[0].rows) == 6
    assert run_segments(recipe.model_copy(update={"max_failed_share": 0.34}), inline).complete
