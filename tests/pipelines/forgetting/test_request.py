"""Requests to forget: no trace is left, nothing else is removed, and a killed removal can be finished."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from cluster.config import ConfigError
from pipelines import inline
from pipelines.commands.curate import curate
from pipelines.curation import inspect, run_segments
from pipelines.engine import exclusions
from pipelines.engine.exclusions import check_no_unfinished_removal
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Step
from pipelines.forgetting.request import forget
from pipelines.ledger import ledger
from pipelines.recipe import Recipe, resolved
from pipelines.steps.keep import Bound
from tests.support.killing import Killed, Killer, files_of, void_leases
from tests.support.toy_recipes import final_rows, keep, toy_file, toy_recipe, write_toys
from tests.support.toy_steps import LongMeasure, Measure, Pick, Score, Split
from tests.support.traces import files_naming, without_records

NAMES = ["a-3", "b-0", "c-6", "broken-1", "d-1", "e-5"]


def uids_of(rows: list[dict[str, Any]], source: str) -> set[str]:
    return {row["uid"] for row in rows if row["source"] == source}


def kept_with_duplicates(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Return whether a row is kept, and a row of another file is a duplicate of it."""
    others = (other for other in rows if other["source"] != row["source"])
    return row["fate"] == "kept" and any(
        other["fate"] == "duplicate" and other["cluster"] == row["uid"] for other in others
    )


@pytest.mark.slow
@settings(max_examples=8)
@given(clips=st.lists(st.integers(0, 6), min_size=2, max_size=6), chosen=st.integers(0, 5), by_uid=st.booleans())
def test_remaining_rows_equal_a_run_without_the_file(
    tmp_path_factory: pytest.TempPathFactory, clips: list[int], chosen: int, by_uid: bool
) -> None:
    folder = tmp_path_factory.mktemp("forget")
    names = [f"{letter}-{count}" for letter, count in zip("abcdef", clips, strict=False)]
    write_toys(folder, names)
    recipe = toy_recipe(folder)
    rows = final_rows(run_segments(recipe, inline))
    removed = toy_file(folder, names[chosen % len(names)])
    own = [row for row in rows if row["source"] == str(removed)]
    outcome = forget(recipe, uid=own[0]["source_uid"]) if by_uid else forget(recipe, source=str(removed))
    assert outcome is not None
    uids = {row[name] for row in own for name in ("uid", "source_uid")}
    assert files_naming(recipe.out_uri, str(removed), *uids) == []
    assert (outcome.record.state, outcome.proof.left) == ("finished", [])
    after = run_segments(recipe, inline)
    removed.unlink()
    assert final_rows(after) == final_rows(run_segments(toy_recipe(folder, out="without"), inline))
    assert all(account.balanced for account in ledger(after))


@pytest.mark.slow
def test_nothing_is_recomputed_and_the_file_stays_out(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    calls = tmp_path / "calls"
    steps: list[Step] = [Measure(calls=str(calls)), Split(), keep(number=Bound(max=4)), Score(), Pick()]
    recipe = toy_recipe(tmp_path, steps)
    before = final_rows(run_segments(recipe, inline))
    calls.write_text("")
    # Uids depend on the time of the files, and so does which clip of a number is kept: take the file of such a one.
    removed = Path(next(row["source"] for row in before if kept_with_duplicates(row, before)))
    forget(recipe, source=str(removed))
    after = run_segments(recipe, inline)
    removed.write_text("another version of the file")
    assert final_rows(run_segments(recipe, inline)) == final_rows(after)
    assert calls.read_text() == ""
    # Of the duplicates of the removed clips, some are kept now.
    kept_before = {row["uid"] for row in before if row["fate"] == "kept"}
    newly_kept = {row["uid"] for row in final_rows(after) if row["fate"] == "kept"} - kept_before
    removed_uids = uids_of(before, str(removed))
    assert newly_kept
    assert newly_kept <= {row["uid"] for row in before if row["fate"] == "duplicate" and row["cluster"] in removed_uids}


@pytest.mark.slow
def test_uids_in_other_rows_are_redacted(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path)
    rows = final_rows(run_segments(recipe, inline))
    clusters = Counter(row["cluster"] for row in rows if row["fate"] == "duplicate")
    source_of = {row["uid"]: row["source"] for row in rows}
    source = source_of[clusters.most_common(1)[0][0]]
    folder = inspect(recipe).final.folder
    outcome = forget(recipe, source=source)
    assert outcome is not None
    assert sum(outcome.record.redacted_cells.values()) == sum(
        row["cluster"] in uids_of(rows, source) and row["source"] != source for row in rows
    )
    parts = storage.list_files(folder, ".parquet")
    left = [row for entry in parts for row in storage.read_table(entry.uri).to_pylist()]
    uids = {row["uid"] for row in left}
    assert uids == {row["uid"] for row in rows if row["source"] != source}
    assert all(row["cluster"] in uids or row["cluster"] in {None, row["uid"]} for row in left)


def write_other_files(recipe: Recipe) -> str:
    """Write the other files of a run that name a source and its clips; returns the URI of that source.

    These are exports, splits, summaries, previews, and a plan with its pieces.
    """
    out, rows = recipe.out_uri, final_rows(inspect(recipe))
    clips = [row for row in rows if "/c-" in row["source"]]
    others = [row for row in rows if "/e-" in row["source"]]
    split = pa.table(
        {
            "uid": [row["uid"] for row in rows],
            "source_uid": [row["source_uid"] for row in rows],
            "split": ["train"] * len(rows),
        }
    )
    storage.write_table(f"{out}/splits.parquet", split)
    reason = {"reason": f"near-duplicate of a clip of {clips[0]['source']}"}
    storage.write_bytes(f"{out}/ledger.json", json.dumps(reason).encode())
    storage.write_bytes(f"{out}/report.html", f"<p>{clips[0]['source']}".encode())
    exported = [*clips, *others]
    for kind, files in (
        ("mp4", [f"{row['uid']}.mp4" for row in exported]),
        ("webdataset", ["train-0.tar"] * len(exported)),
    ):
        index = pa.table(
            {"uid": [row["uid"] for row in exported], "source": [row["source"] for row in exported], "file": files}
        )
        for name in files:
            storage.write_bytes(f"{out}/export/{kind}/{name}", b"a film")
        storage.write_table(f"{out}/export/{kind}/index.parquet", index)
    storage.write_bytes(f"{out}/export/mp4/{clips[0]['uid']}.json", json.dumps({"source": clips[0]["source"]}).encode())
    storage.write_bytes(f"{out}/export/mp4/all.json", json.dumps([f"{clips[0]['uid']}.mp4"]).encode())
    for step, uid in ((500, clips[0]["uid"]), (1000, others[0]["uid"])):
        samples = {"samples": [{"uid": uid}]}
        storage.write_bytes(f"{out}/run-0/previews/step-{step:06d}.json", json.dumps(samples).encode())
    source_uid = clips[0]["source_uid"]
    storage.write_bytes(f"{out}/tables/scan-0/{source_uid}.plan.json", b"[]")
    storage.write_bytes(f"{out}/tables/scan-0/{source_uid}~3.piece", b"D...")
    storage.write_bytes(f"{out}/tables/scan-0/0123456789abcdef0123~0.piece", b"of a version that is no longer listed")
    return str(clips[0]["source"])


@pytest.mark.slow
def test_exports_summaries_and_pieces_are_removed(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path)
    run_segments(recipe, inline)
    source = write_other_files(recipe)
    uids = uids_of(final_rows(inspect(recipe)), source)
    run_yaml = Path(recipe.out_uri) / "run.yaml"
    run_yaml.write_text(f"name: earlier\nsources:\n  - videos: {source}\n")
    forget(recipe, source=source)
    assert run_yaml.read_text() == resolved(recipe)
    assert files_naming(recipe.out_uri, source, *uids) == []
    names = set(files_of(recipe.out_uri))
    gone = (".piece", ".plan.json", "ledger.json", "report.html", ".tar", "all.json")
    assert not {name for name in names if name.endswith(gone)}
    assert {name for name in names if "/previews/" in name} == {"run-0/previews/step-001000.json"}
    assert "export/webdataset/index.parquet" not in names, "its only file had clips of both"
    left = pq.read_table(f"{recipe.out_uri}/export/mp4/index.parquet")["file"].to_pylist()
    assert left
    assert {name for name in names if name.endswith(".mp4")} == {f"export/mp4/{file}" for file in left}


@pytest.mark.slow
def test_a_removal_killed_anywhere_can_be_finished(tmp_path: Path) -> None:
    write_toys(tmp_path, ["c-2", "e-2"])
    recipe = toy_recipe(tmp_path)
    run_segments(recipe, inline)
    source = write_other_files(recipe)
    before = tmp_path / "before"
    shutil.copytree(recipe.out_uri, before)
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch)
        forget(recipe, source=source)
    undisturbed = without_records(files_of(recipe.out_uri))
    record = exclusions.read_records(recipe.out_uri)[0]
    assert killer.kill_points > 40
    for at in range(killer.kill_points):
        shutil.rmtree(recipe.out_uri)
        shutil.copytree(before, recipe.out_uri)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            with pytest.raises(Killed):
                forget(recipe, source=source)
        void_leases(recipe.out_uri)
        if exclusions.unfinished_removals(recipe.out_uri):
            with pytest.raises(ConfigError, match="was interrupted"):
                check_no_unfinished_removal(recipe.out_uri)
            forget(recipe)
        else:
            # Killed before the list was written, or after everything was done.
            forget(recipe, source=source)
        assert without_records(files_of(recipe.out_uri)) == undisturbed, at
        again = exclusions.read_records(recipe.out_uri)[0]
        assert (again.id, again.state, again.removed_rows, again.proof, again.dataset_after) == (
            record.id,
            "finished",
            record.removed_rows,
            record.proof,
            record.dataset_after,
        ), at
        assert not exclusions.unfinished_removals(recipe.out_uri)


@pytest.mark.slow
def test_a_trace_that_is_left_keeps_the_request_open(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path)
    run_segments(recipe, inline)
    notes = Path(recipe.out_uri) / "notes.txt"
    source = str(toy_file(tmp_path, "a-3"))
    notes.write_text(f"look at {source}!")
    with pytest.raises(RuntimeError, match=r"notes\.txt: its content"):
        forget(recipe, source=source)
    assert exclusions.read_records(recipe.out_uri)[0].state == "started"
    with pytest.raises(ConfigError, match="was interrupted"):
        curate(recipe, in_process=True)
    notes.unlink()
    outcome = forget(recipe)
    assert outcome is not None
    assert outcome.record.state == "finished"
    text = Path(exclusions.record_uri(recipe.out_uri, outcome.record.id)).read_text()
    assert source not in text
    assert "a-3" not in text


def test_bad_requests_are_refused_with_the_fix(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path)
    source = str(toy_file(tmp_path, "a-3"))
    with pytest.raises(ConfigError, match="give --source"):
        forget(recipe)
    with pytest.raises(ConfigError, match="is not a source of this recipe"):
        forget(recipe, source=str(tmp_path / "other.toy"))
    with pytest.raises(ConfigError, match="no source and no clip"):
        forget(recipe, uid="0123456789abcdef0123")
    naming = recipe.model_copy(update={"sources": (*recipe.sources, SourceSettings(videos=source))})
    with pytest.raises(ConfigError, match="the recipe itself names"):
        forget(naming, source=source)
    assert forget(recipe, source=source, confirm=lambda _: False) is None
    assert not (tmp_path / "out").exists() or not exclusions.read_records(recipe.out_uri)


def test_a_damaged_record_stops_later_runs(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    recipe = toy_recipe(tmp_path)
    outcome = forget(recipe, source=str(toy_file(tmp_path, "a-3")))
    assert outcome is not None
    Path(exclusions.record_uri(recipe.out_uri, outcome.record.id)).write_text("{}")
    with pytest.raises(ConfigError, match="put it back"):
        inspect(recipe)


def test_pieces_of_a_long_file_are_removed(tmp_path: Path) -> None:
    write_toys(tmp_path, ["a-3", "b-2"])
    calls = tmp_path / "calls"
    calls.touch()
    interrupted = toy_recipe(tmp_path, [LongMeasure(calls=str(calls), stop_at=3), Split()])
    with pytest.raises(RuntimeError, match="the disk is full"):
        run_segments(interrupted, inline)
    assert any(name.endswith(".piece") for name in files_of(interrupted.out_uri))
    outcome = forget(interrupted, source=str(toy_file(tmp_path, "a-3")))
    assert outcome is not None
    assert outcome.record.removed_files >= 1
    calls.write_text("")
    after = run_segments(toy_recipe(tmp_path, [LongMeasure(calls=str(calls)), Split()]), inline)
    assert {Path(row["source"]).stem for row in final_rows(after)} == {"b-2"}
