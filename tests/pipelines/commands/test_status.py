"""`worldloom status`: what it tells of runs that are finished, unfinished, running or damaged. It writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from cluster import leases, storage, stores
from cluster.leases import Holder, lease
from pipelines.status import read_status
from tests.support.command_line import CommandLine
from training.sampling.provenance import write_provenance
from training.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow

ELSEWHERE = Holder("0" * 16, "tables", "holding", "worldloom run", "elsewhere/1/2", 7, "1", "2026-01-01T00:00:00+00:00")
"""A command on another machine."""


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder of a finished run, without its recipe's file and footage."""
    return shutil.copytree(trained.parent / "out", tmp_path / "out")


def only(out: Path, pattern: str) -> Path:
    """Return the only path that matches a pattern."""
    (path,) = out.glob(pattern)
    return path


def read(worldloom: CommandLine, out: object, exit_code: int = 0) -> dict[str, Any]:
    """Return the JSON of a status."""
    ended = worldloom("status", out, "--json")
    assert ended.exit_code == exit_code, ended.stderr
    status: dict[str, Any] = json.loads(ended.stdout)
    return status


def test_a_finished_run(out: Path, worldloom: CommandLine) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    status = read(worldloom, out)
    assert (status["name"], status["state"], status["problems"], status["leases"]) == ("trained", "finished", [], [])
    assert [step["step"] for step in status["curation"]] == ["scan", "cut", "caption", "encode"]
    assert {(step["done"], step["inputs"]) for step in status["curation"][:2]} == {(4, 4)}
    # The fates of the last step are those of the last table, as its rows tell.
    (part,) = (out / "tables").glob("encode-*/part-*.parquet")
    fates = storage.read_table(str(part), ["fate", "fate_step"]).to_pylist()
    last = status["curation"][-1]
    assert last["kept"] == sum(row["fate"] == "kept" for row in fates)
    assert sum(sum(step["marked"].values()) for step in status["curation"]) == len(fates) - last["kept"]
    (run,) = status["trainings"]
    records = read_metrics(str(only(out, "run-*")))
    assert (run["state"], run["step"], run["steps"], run["checkpoints"]) == ("finished", 3, 3, [3])
    assert (run["loss"], run["val_loss"]) == (records[-1]["loss"], records[-1]["val_loss"])
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    ended = worldloom("status", out)
    assert (ended.exit_code, "encode" in ended.stdout, f"{records[-1]['loss']:.4f}" in ended.stdout) == (0, True, True)


def test_an_unfinished_run(out: Path, worldloom: CommandLine) -> None:
    shutil.rmtree(only(out, "tables/encode-*"))
    shutil.rmtree(only(out, "run-*/export"))
    with only(out, "run-*/metrics.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')  # cut off by a kill
    status = read(worldloom, out)
    assert (status["state"], status["trainings"][0]["state"]) == ("unfinished", "unfinished")
    assert [step["step"] for step in status["curation"]] == ["scan", "cut", "caption"]
    shutil.rmtree(only(out, "tables/cut-*"))
    (scan,) = read(worldloom, out)["curation"]
    assert (scan["done"], scan["inputs"]) == (4, None)


def test_the_speed_of_a_step_and_a_failure(out: Path, worldloom: CommandLine) -> None:
    shutil.rmtree(only(out, "tables/cut-*"))
    (part,) = only(out, "tables").glob("scan-*/part-*.parquet")
    rows, now_s = storage.read_table(str(part)), int(time.time())
    part.unlink()
    failed, end = rows, {"fate": "failed", "fate_step": "scan", "fate_reason": "DecodeError: a.mp4: cut short"}
    for name, value in end.items():
        failed = failed.set_column(rows.schema.get_field_index(name), name, pa.array([value] * len(rows)))
    # A part an hour ago, and one row a part 40, 30 and 20 s ago: two rows in 20 s.
    for number, (table, age_s) in enumerate(((rows, 3600), (failed, 40), (rows, 30), (rows, 20))):
        path = part.with_name(f"part-{number}.parquet")
        storage.write_table(str(path), table.slice(number, 1))
        os.utime(path, (now_s - age_s, now_s - age_s))
    (scan,) = read(worldloom, out)["curation"]
    assert (scan["done"], scan["inputs"], scan["marked"]["failed"]) == (4, None, 1)
    assert scan["rows_per_s"] == pytest.approx(2 / 20)
    assert 20 <= scan["record_age_s"] < 80
    assert scan["failure"] == "DecodeError: a.mp4: cut short"
    printed = worldloom("status", out).stdout
    assert "failed in scan, as: DecodeError: a.mp4: cut short" in printed
    assert " 0.1 " in printed


def test_damaged_files_are_named(out: Path, worldloom: CommandLine) -> None:
    run = only(out, "run-*")
    part = only(out, "tables/encode-*/part-*.parquet")
    part.write_bytes(b"PAR1 no footer")
    (run / "metrics.jsonl").write_text("no json\n")
    (run / "settings.json").write_text("[]")
    only(run, "checkpoints/*/complete.json").write_text("{}")
    (run / "failure.txt").write_text("NonFiniteLossError\nstep 3: the loss is nan")
    status = read(worldloom, out, exit_code=1)
    assert status["state"] == "failed"
    assert [step["step"] for step in status["curation"]] == ["scan", "cut", "caption"]
    found = "\n".join(status["problems"])
    assert len(status["problems"]) == 5
    for text in (
        str(part),
        "metrics.jsonl:1: is damaged",
        "settings.json: is damaged",
        "complete.json: is damaged",
        "the loss is nan",
    ):
        assert text in found
    assert worldloom("status", out).exit_code == 1
    (out / "run.yaml").write_text("name: [")
    assert any("run.yaml:1" in problem for problem in read(worldloom, out, exit_code=1)["problems"])


def test_commands_that_write_are_shown(out: Path, worldloom: CommandLine) -> None:
    path = out / leases.FOLDER / f"{ELSEWHERE.id}{leases.SUFFIX}"
    with lease(str(out), "run-1"):
        dead = {**asdict(ELSEWHERE), "host": leases.host_identity(), "process": "another"}
        path.write_text(json.dumps(dead))
        status = read(worldloom, out)
        assert status["state"] == "running"
        assert [(one["holder"]["scope"], one["alive"]) for one in status["leases"]] == [
            ("tables", False),
            ("run-1", True),
        ]
    path.write_text(json.dumps(asdict(ELSEWHERE)))
    assert [one["alive"] for one in read(worldloom, out)["leases"]] == [True]
    assert path.exists(), "a lease of another is not removed"


def test_a_store_is_read_as_a_folder(out: Path, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    local = read(worldloom, out)
    store = pafs.SubTreeFileSystem(str(out.parent), pafs.LocalFileSystem())
    monkeypatch.setattr(stores, "filesystem", lambda scheme, bucket: store)
    remote = read(worldloom, "s3://out")
    assert remote.pop("uri") == "s3://out"
    local.pop("uri")
    for status in (local, remote):
        for measured in (*status["trainings"], *status["curation"]):
            measured.pop("record_age_s")
    assert remote == local


def test_a_file_that_vanishes_is_read_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_files, calls = storage.list_files, []

    def once_stale(uri: str, suffix: str = "") -> list[storage.Entry]:
        calls.append(uri)
        entries = list_files(uri, suffix)
        if len(calls) == 1:
            return [storage.Entry(f"{uri}/part-gone.parquet", 1, "0")]
        return entries

    monkeypatch.setattr(storage, "list_files", once_stale)
    status = read_status(str(out))
    assert (status.problems, len(status.curation), status.state) == ((), 4, "finished")


def test_samples_are_counted(out: Path, worldloom: CommandLine) -> None:
    storage.write_bytes(str(out / "samples" / "one.png"), b"an image")
    assert read(worldloom, out)["samples"]["count"] == 0, "it has no record"
    write_provenance(str(out / "samples" / "one.png"), {})
    assert read(worldloom, out)["samples"] == {"count": 1, "newest": str(out / "samples" / "one.png")}


def test_a_folder_without_a_run(tmp_path: Path, worldloom: CommandLine) -> None:
    ended = worldloom("status", tmp_path)
    assert (ended.exit_code, "nothing was run here" in ended.stderr) == (2, True)
    (tmp_path / "file").write_text("")
    ended = worldloom("status", tmp_path / "file")
    assert (ended.exit_code, "is a file; name the folder" in ended.stderr) == (2, True)
