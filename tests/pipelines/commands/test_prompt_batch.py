"""Batches of prompts: every sample is there once, also after a kill, and one that fails costs no other anything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster import storage
from cluster.config import ConfigError
from cluster.ray_settings import RaySettings
from cluster.resources import ClusterSize
from pipelines.commands import _prompt_batch
from pipelines.commands._prompt_batch import PromptBatch, sample_prompts, worker_resources
from pipelines.commands._prompt_file import PromptRow
from pipelines.commands._session import Session
from pipelines.engine.step import TableFunction
from tests.support.command_line import CommandLine
from tests.support.exported_models import write_untrained_export
from tests.support.killing import Killed, void_leases
from training.sampling.mark_settings import MarkSettings
from training.sampling.settings import SampleSettings


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_untrained_export(tmp_path_factory.mktemp("export"))


def rows_of(*prompts: str, size: str = "32x32") -> list[PromptRow]:
    """Return rows of images of one solver step."""
    return [
        PromptRow(f"p.txt line {line}", SampleSettings(prompt=prompt, seconds=0, size=size, steps=1, guidance=1))
        for line, prompt in enumerate(prompts, 1)
    ]


def batch_of(model_uri: str, out: Path, rows: Sequence[PromptRow]) -> PromptBatch:
    return PromptBatch(model_uri, rows, str(out), "p", workers=1)


def ledger_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "ledger-p.jsonl").read_text().splitlines()]


def in_process() -> Session:
    return Session(RaySettings(), in_process=True)


def stop_after(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """Kill the batch when this many samples are reported."""

    class Bar:
        reported = 0

        def advance(self, amount: float = 1.0, note: str = "") -> None:
            self.reported += 1
            if self.reported == samples:
                raise Killed

    monkeypatch.setattr(_prompt_batch, "progress", lambda *_: contextlib.nullcontext(Bar()))


def test_a_killed_batch_resumes(untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.sampling import exported_model

    batch = batch_of(untrained, tmp_path, rows_of(*"abcdef", "a"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Killed):
            sample_prompts(batch, in_process())
    void_leases(tmp_path)
    before = {record.name: record.stat().st_mtime_ns for record in tmp_path.glob("*.png.json")}
    assert len(before) == 2
    reads: list[str] = []
    read_model = exported_model.read_model
    monkeypatch.setattr(exported_model, "read_model", lambda uri: reads.append(uri) or read_model(uri))
    result = sample_prompts(batch, in_process())
    assert (result.made, result.kept, result.failed) == (4, 2, 0)
    assert reads == [untrained], "the model is read once"
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before, "a sample was made again"
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.png.json"))) == 6
    ledger = ledger_of(tmp_path)
    assert [line["prompt"] for line in ledger] == [*"abcdef", "a"]
    assert ledger[0]["file"] == ledger[6]["file"], "equal rows share a sample"
    assert all((tmp_path / str(line["file"])).is_file() and line["status"] == "made" for line in ledger)


@pytest.mark.slow
def test_a_sample_that_kills_its_worker_fails_alone(
    untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    opened = _prompt_batch._open_sampler

    def open_crashing(model_uri: str, marks: MarkSettings | None) -> TableFunction:
        make = opened(model_uri, marks)

        def run(table: pa.Table) -> pa.Table:
            if '"crash"' in table["header"][0].as_py():
                os.kill(os.getpid(), signal.SIGKILL)
            return make(table)

        return run

    batch = batch_of(untrained, tmp_path, rows_of("a", "crash", "b"))
    with monkeypatch.context() as patch, Session(RaySettings()) as session:
        patch.setattr(_prompt_batch, "_open_sampler", open_crashing)
        result = sample_prompts(batch, session)
    lines = {line["prompt"]: line for line in ledger_of(tmp_path)}
    assert (result.made, result.failed) == (2, 1)
    assert lines["a"]["status"] == lines["b"]["status"] == "made"
    assert "WorkerDied" in str(lines["crash"]["error"])
    again = sample_prompts(batch, in_process())
    assert (again.made, again.kept, again.failed) == (1, 2, 0)


def test_a_sample_that_fails_is_named_and_tried_again(
    untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.sampling import tasks

    make = tasks.make

    def fail(sample: tasks.PreparedSample, model: tasks.ExportedModel, marker: tasks.Marker) -> str:
        if sample.prompt == "b":
            raise RuntimeError("out of memory:\n 80 GB")
        return make(sample, model, marker)

    batch = batch_of(untrained, tmp_path, rows_of("a", "b", "c"))
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "make", fail)
        first = sample_prompts(batch, in_process())
    assert (first.made, first.kept, first.failed) == (2, 0, 1)
    lines = ledger_of(tmp_path)
    assert [line["status"] for line in lines] == ["made", "failed", "made"]
    assert lines[1]["error"] == "RuntimeError: out of memory: 80 GB"
    again = sample_prompts(batch, in_process())
    assert (again.made, again.kept, again.failed) == (1, 2, 0)


def test_a_row_that_the_model_cannot_make_is_named_first(untrained: str, tmp_path: Path) -> None:
    rows = [*rows_of("a"), *rows_of("b", size="40x40")]
    with pytest.raises(ConfigError, match=r"^p.txt line 1: size 40x40: width and height must be multiples of 16"):
        sample_prompts(batch_of(untrained, tmp_path, rows), in_process())
    assert list(tmp_path.glob("*.png")) == []


def test_sheets_show_every_sample(untrained: str, tmp_path: Path) -> None:
    result = sample_prompts(batch_of(untrained, tmp_path, rows_of("a", "b", "a")), in_process())
    (sheet,) = (Image.open(uri) for uri in result.sheet_uris)
    assert sheet.size == (2 * 160, 178)
    pixels = np.asarray(sheet)
    for column, prompt in enumerate("ab"):
        (file,) = tmp_path.glob(f"{prompt}-*.png")
        shown = np.asarray(Image.open(file).resize((156, 156), Image.Resampling.LANCZOS)).astype(int)
        cell = pixels[2:158, column * 160 + 2 : column * 160 + 158]
        assert np.abs(cell - shown).mean() < 4, "JPEG may change single pixels"


def test_workers_share_cores_or_have_a_gpu_each() -> None:
    def cpus_and_gpus(workers: int | None, size: ClusterSize) -> tuple[float, float, int | None]:
        found = worker_resources(workers, size)
        return found.cpus, found.gpus, found.max_workers

    assert cpus_and_gpus(None, ClusterSize(16.0)) == (16, 0, 1)
    assert cpus_and_gpus(3, ClusterSize(16.0)) == (5, 0, 3)
    assert cpus_and_gpus(4, ClusterSize(2.0)) == (0.5, 0, 4)
    assert cpus_and_gpus(None, ClusterSize(16.0, 4.0)) == (1, 1, 4)
    assert cpus_and_gpus(2, ClusterSize(16.0, 4.0)) == (1, 1, 2)
    with pytest.raises(ConfigError, match="--workers 8: the cluster has 4 GPUs, and each worker needs one"):
        worker_resources(8, ClusterSize(16.0, 4.0))


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line run batches in this process."""
    from pipelines.commands import sample

    monkeypatch.setattr(sample, "Session", lambda ray: Session(ray, in_process=True))


@pytest.mark.usefixtures("_in_process")
def test_the_command_prints_ledger_and_sheet(untrained: str, tmp_path: Path, worldloom: CommandLine) -> None:
    (tmp_path / "two.csv").write_text("prompt,seconds\na,0\nb,\n")
    options = ("--size", "32x32", "--steps", "1", "--seconds", "0", "--seeds", "2", "--out", tmp_path / "s")
    ended = worldloom("sample", "--model", untrained, "--prompts", tmp_path / "two.csv", *options)
    assert ended.exit_code == 0, ended.stderr
    ledger, sheet = ended.stdout.splitlines()
    assert (Path(ledger).name, Path(sheet).name) == ("ledger-two.jsonl", "contact-sheet-two.jpg")
    lines = [json.loads(line) for line in storage.read_bytes(ledger).splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_options_of_one_sample_are_refused(untrained: str, tmp_path: Path, worldloom: CommandLine) -> None:
    (tmp_path / "p.txt").write_text("a\n")
    for options, message in (
        (("--prompts", tmp_path / "p.txt", "--prompt", "b"), "--prompt is of one sample"),
        (("--prompts", tmp_path / "p.txt", "--name", "b"), "--name is of one sample"),
        (("--prompt", "b", "--workers", "2"), "give --prompts"),
    ):
        ended = worldloom("sample", "--model", untrained, *options)
        assert (ended.exit_code, message in ended.stderr) == (2, True), ended.stderr
