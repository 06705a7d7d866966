"""Long rows in pieces: the table equals that of undivided rows, whatever happens in between."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import inline, run
from pipelines.curation import run_segments
from pipelines.engine import pieces
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Piece, RunError
from pipelines.recipe import Recipe
from pipelines.steps.scan import Scan
from tests.support.toy_recipes import final_rows, logged_calls, toy_recipe, write_toys
from tests.support.toy_steps import LongMeasure, Measure, Split
from tests.support.videos import encode, sliding

pytestmark = pytest.mark.slow

NAMES = ["a-3", "b-0", "c-8", "d-1", "e-5"]


class Planted:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def clip_fates(rows: list[dict[str, Any]]) -> list[tuple[str, str, int | None, str]]:
    """Return (uid, source, clip index, fate) of rows, sorted: what the tables of `Measure` and `LongMeasure` share."""
    return sorted((row["uid"], row["source"], row["clip_index"], row["fate"]) for row in rows)


def leftovers(folder: Path) -> list[Path]:
    """Return the plans and the results of pieces under `out`."""
    return [
        path for path in (folder / "out").rglob("*") if path.name.endswith((pieces.PLAN_SUFFIX, pieces.PIECE_SUFFIX))
    ]


def test_pieces_give_the_table_of_undivided_rows(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    whole = final_rows(run_segments(toy_recipe(tmp_path, [Measure(), Split()]), inline))
    divided = final_rows(run_segments(toy_recipe(tmp_path, [LongMeasure(calls=calls), Split()]), inline))
    # A source without a clip keeps its uid either way.
    assert clip_fates(divided) == clip_fates(whole)
    done = logged_calls(calls)
    assert sorted(done) == sorted(
        [
            *(f"{n}:{i}" for n, k in (("a-3", 3), ("c-8", 8), ("e-5", 5)) for i in range(k)),
            "b-0:whole",
            "d-1:whole",
            "a-3:join",
            "c-8:join",
            "e-5:join",
        ]
    )
    assert [name for name in done if name[-1].isdigit()][:8] == [f"c-8:{i}" for i in range(8)], (
        "the costliest pieces come first"
    )
    assert leftovers(tmp_path) == []


def test_a_failed_piece_fails_its_row_alone(tmp_path: Path) -> None:
    write_toys(tmp_path, [*NAMES, "bad-2"])
    rows = final_rows(run_segments(toy_recipe(tmp_path, [LongMeasure(), Split()]), inline))
    (bad,) = (row for row in rows if "bad" in row["source"])
    assert (bad["fate"], bad["fate_step"], bad["fate_reason"]) == (
        "failed",
        "long_measure",
        "OSError: cannot be decoded",
    )
    assert sum(row["fate"] == "kept" for row in rows) == 17
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("stop_at", [2, 5, 12, 17])
def test_a_stopped_run_resumes_with_the_remaining_pieces(tmp_path: Path, stop_at: int) -> None:
    write_toys(tmp_path, NAMES)
    calls = str(tmp_path / "calls")
    with pytest.raises(RunError, match="disk is full"):
        run_segments(toy_recipe(tmp_path, [LongMeasure(calls=calls, stop_at=stop_at), Split()]), inline)
    assert leftovers(tmp_path)
    again = final_rows(run_segments(toy_recipe(tmp_path, [LongMeasure(calls=calls), Split()]), inline))
    assert sum(row["fate"] == "kept" for row in again) == 17
    done = logged_calls(calls)
    assert len(done) == len(set(done)), "no piece was done twice"
    assert leftovers(tmp_path) == []


def test_planted_results_are_made_again_and_run_nothing(tmp_path: Path) -> None:
    """Whoever may write to the storage may leave any bytes as the result of a piece that is not done."""
    write_toys(tmp_path, ["c-8"])
    calls = str(tmp_path / "calls")
    Path(calls).touch()
    with pytest.raises(RunError, match="disk is full"):
        run_segments(toy_recipe(tmp_path, [LongMeasure(calls=calls, stop_at=6), Split()]), inline)
    results = sorted(path for path in leftovers(tmp_path) if path.suffix == pieces.PIECE_SUFFIX)
    (plan,) = set(leftovers(tmp_path)) - set(results)
    line, _, rest = results[3].read_bytes().partition(b"\n")
    header = json.loads(line)
    planted = [
        b"D" + pickle.dumps(Planted(tmp_path / "ran")),
        pickle.dumps(Planted(tmp_path / "ran")),
        b"",
        json.dumps({**header, "number": 3, "version": header["version"] + 1}).encode() + b"\n" + rest,
        json.dumps({**header, "number": 4, "count": 9}).encode() + b"\n" + rest,
        json.dumps({**header, "number": 5}).encode() + b"\nnot a number",
        b"[" * 100_000 + b"\n",
        json.dumps([1, 2]).encode() + b"\n1",
    ]
    for number, data in enumerate(planted):
        (plan.parent / f"{plan.name.removesuffix(pieces.PLAN_SUFFIX)}~{number}{pieces.PIECE_SUFFIX}").write_bytes(data)
    rows = final_rows(run_segments(toy_recipe(tmp_path, [LongMeasure(calls=calls), Split()]), inline))
    assert [row["fate"] for row in rows] == ["kept"] * 8
    assert logged_calls(calls)[6:] == [*(f"c-8:{i}" for i in range(8)), "c-8:join"]
    assert not (tmp_path / "ran").exists()


def test_a_row_whose_division_raises_is_not_divided(tmp_path: Path) -> None:
    """The row's own work meets the same error, and records it in the row."""
    write_toys(tmp_path, ["odd", "d-1"])
    rows = final_rows(run_segments(toy_recipe(tmp_path, [LongMeasure(), Split()]), inline))
    assert {Path(row["source"]).stem: row["fate"] for row in rows} == {"odd": "failed", "d-1": "kept"}


def test_a_piece_that_kills_its_worker_fails_its_row(tmp_path: Path, ray_session: None) -> None:
    write_toys(tmp_path, [*NAMES, "crash-2"])
    rows = final_rows(run_segments(toy_recipe(tmp_path, [LongMeasure(), Split()]), run))
    assert len({row["uid"] for row in rows}) == len(rows)
    (dead,) = (row for row in rows if "crash" in row["source"])
    assert (dead["fate"], dead["fate_reason"].split(":")[0]) == ("failed", "WorkerDied")
    assert sum(row["fate"] == "kept" for row in rows) == 17
    assert leftovers(tmp_path) == []


def test_a_video_scanned_in_pieces_gives_the_same_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    film = np.concatenate([sliding(n, 1.0, 160, 96, seed) for seed, n in enumerate((70, 83, 95, 61, 107, 88))])
    encode(tmp_path / "in" / "film.mp4", film, time_base=Fraction(1, 24), options={"bf": "3", "g": "60"})
    (tmp_path / "in" / "text.mp4").write_bytes(b"no video" * 100)
    sources = (SourceSettings(videos=str(tmp_path / "in" / "*.mp4")),)

    def recipe(name: str) -> Recipe:
        return Recipe(name=name, out=str(tmp_path / name), sources=sources, curate=(Scan(),), max_failed_share=0.5)

    whole = run_segments(recipe("whole"), inline)
    done: list[int] = []
    run_piece = Scan.run_piece

    def recorded(self: Scan, row: Mapping[str, Any], piece: Piece) -> bytes:
        done.append(piece.number)
        return run_piece(self, row, piece)

    monkeypatch.setattr(Scan, "run_piece", recorded)
    monkeypatch.setattr("pipelines.steps.scan.MIN_DIVIDED_BYTES", 0)
    monkeypatch.setattr("pipelines.video.scan.PIECE_COST", 160 * 96 * 24 * 6)
    divided = run_segments(recipe("divided"), inline)
    assert sorted(done) == [0, 1, 2]
    assert final_rows(divided) == final_rows(whole)
    assert [row["fate"] for row in sorted(final_rows(divided), key=lambda row: row["source"])] == ["kept", "failed"]
