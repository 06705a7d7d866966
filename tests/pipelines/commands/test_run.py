"""`worldloom run` and `worldloom curate`: which parts of a recipe each of them does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from cluster.config import ConfigError
from pipelines.commands import train
from pipelines.commands._session import Session
from pipelines.commands.run import run
from pipelines.recipe import load_recipe
from tests.pipelines.commands.conftest import TRAINING
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.slow

SAMPLE = "sample=[{prompt: a star, seconds: 0, size: 32x32, steps: 1, name: star}]"


@pytest.fixture
def of_manifest(manifest: Path, tmp_path: Path) -> Path:
    """Return a recipe that names a manifest."""
    path = tmp_path / "manifest.yaml"
    recipe = {"name": "other", "out": str(tmp_path / "out"), "manifest": str(manifest), "train": TRAINING}
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_recipe_of_a_manifest_trains_and_samples(of_manifest: Path) -> None:
    recipe = load_recipe(of_manifest, [SAMPLE])
    outcome = run(recipe, in_process=True)
    assert (outcome.curated, outcome.report_uri) == (None, None)
    assert outcome.training is not None
    assert outcome.training.steps == 3
    assert outcome.samples == [f"{recipe.out_uri}/samples/star.png"]
    assert Path(outcome.samples[0]).is_file()


def test_a_recipe_of_a_manifest_curates_nothing(of_manifest: Path, worldloom: CommandLine) -> None:
    for command in ("curate", "ledger", "plan", "report"):
        ended = worldloom(command, of_manifest)
        assert (ended.exit_code, "curates nothing" in ended.stderr) == (2, True), (command, ended.stderr)
    assert not (of_manifest.parent / "out").exists()


def test_curate_neither_trains_nor_samples(scan_recipe: Path, worldloom: CommandLine) -> None:
    (scan_recipe.parent / "in" / "a.mp4").write_bytes(b"no video")
    ended = worldloom("curate", scan_recipe, "--inline")
    assert ended.exit_code == 0, ended.stderr
    assert "videos: 1 = 0 kept + 0 dropped + 1 failed + 0 duplicate" in ended.stdout
    out = scan_recipe.parent / "out"
    assert {path.name for path in out.iterdir()} == {
        "leases",
        "ledger.json",
        "report.html",
        "run.yaml",
        "splits.parquet",
        "tables",
    }
    assert worldloom("ledger", scan_recipe).exit_code == 0


def test_samples_without_training_are_refused_first(scan_recipe: Path) -> None:
    with pytest.raises(ConfigError, match="sample needs a model: add the section train"):
        run(load_recipe(scan_recipe, [SAMPLE]), in_process=True)
    assert not (scan_recipe.parent / "out").exists()


def test_a_missing_image_is_refused_before_curation(trained: Path, tmp_path: Path) -> None:
    sample = "sample=[{prompt: a star, first: gone.png}]"
    with pytest.raises(ConfigError, match=r"gone\.png: cannot be read"):
        run(load_recipe(trained, [sample, f"out={tmp_path / 'out'}"]), in_process=True)
    assert not (tmp_path / "out").exists()


def test_a_moved_run_works_from_any_folder(
    scan_recipe: Path, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths of the recipe are those of the folder it was run in, and rows stay cached."""
    folder = scan_recipe.parent
    scan_recipe.write_text(scan_recipe.read_text().replace(f"{folder}/", ""))
    (folder / "in" / "a.mp4").write_bytes(b"no video")
    monkeypatch.chdir(folder)
    assert worldloom("curate", scan_recipe, "--inline").exit_code == 0
    parts = {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "tables").rglob("*.parquet")}
    assert parts
    moved = (folder / "out").rename(folder / "moved")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    for recipe in (moved, moved / "run.yaml"):
        plan = worldloom("plan", recipe)
        assert (plan.exit_code, plan.stdout.count("has every row")) == (0, 2), plan.stderr
        assert worldloom("ledger", recipe).exit_code == 0
        ended = worldloom("curate", recipe, "--inline")
        assert (ended.exit_code, str(moved) in ended.stdout) == (0, True), ended.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (moved / "tables").rglob("*.parquet")} == parts
    assert not (folder / "out").exists()
    assert not list((folder / "elsewhere").iterdir())


def test_a_moved_run_is_sampled(trained: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    moved = shutil.copytree(trained.parent / "out", tmp_path / "moved")
    ended = worldloom("sample", moved, "--prompt", "a star", "--seconds", "0", "--size", "32x32", "--steps", "1")
    assert (ended.exit_code, ended.stdout.startswith(f"{moved}/samples/")) == (0, True), ended.stderr


def test_too_many_workers_are_refused_before_curation(
    scan_recipe: Path, worldloom: CommandLine, ray_session: None
) -> None:
    encode = "{encode: {autoencoder: {name: linear}, buckets: [{size: 32, frames: [9], fps: 8}]}}"
    changes = (f"curate=[{{scan: {{}}}}, {{cut: {{}}}}, {{caption: {{engine: signals}}}}, {encode}]", "train.workers=3")
    ended = worldloom("run", scan_recipe, *(part for change in changes for part in ("--set", change)))
    assert ended.exit_code == 2
    assert "train.workers: at least 3 workers need one CPU core each, and the cluster has 2" in ended.stderr
    assert "write workers: auto" in ended.stderr
    assert not (scan_recipe.parent / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("call", [run, train.train])
def test_a_missing_gpu_is_refused_first(of_manifest: Path, call: Callable[..., object]) -> None:
    with pytest.raises(
        ConfigError, match=r"^train\.device: cuda: torch [^ ]* sees no GPU on this machine; install torch"
    ):
        call(load_recipe(of_manifest, ["train.device=cuda"]), in_process=True)
    assert not list((of_manifest.parent / "out").glob("run-*"))


def test_a_finished_training_needs_no_room(trained: Path, ray_session: None) -> None:
    recipe = load_recipe(trained, ["train.workers=64"])
    with Session(recipe.ray) as session:
        train.check_workers(recipe, session)
        with pytest.raises(ConfigError, match="at least 64 workers"):
            train.check_workers(load_recipe(trained, ["train.workers=64", "train.lr=0.5"]), session)
