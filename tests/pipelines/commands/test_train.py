"""`worldloom train`: it needs a manifest and no footage, and names the fix where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.pipelines.commands.conftest import TRAINING
from tests.support.command_line import CommandLine
from training.tracking.metrics import read_metrics


def losses_of(out: Path) -> list[float]:
    """Return the loss of every step of the only training run in `out`."""
    (run,) = out.glob("run-*")
    return [record["loss"] for record in read_metrics(str(run))]


@pytest.fixture
def of_manifest(manifest: Path, tmp_path: Path) -> Path:
    """Return a recipe of another `out` that names the manifest and has the same training settings."""
    path = tmp_path / "manifest.yaml"
    recipe = {"name": "other", "out": str(tmp_path / "out"), "manifest": str(manifest), "train": TRAINING}
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
def test_training_needs_no_footage(trained: Path, worldloom: CommandLine, tmp_path: Path) -> None:
    curated = worldloom("curate", trained, "--inline")
    assert (curated.exit_code, "no file matches" in curated.stderr) == (2, True), "the footage is still there"
    # Training again in a copy of the curated folder gives the same run.
    shutil.copytree(trained.parent / "out", tmp_path / "out", ignore=shutil.ignore_patterns("run-*"))
    ended = worldloom("train", trained, "--inline", "--set", f"out={tmp_path / 'out'}")
    assert ended.exit_code == 0, ended.stderr
    assert "step 3, loss" in ended.stdout
    assert len(losses_of(tmp_path / "out")) == 3
    assert losses_of(tmp_path / "out") == losses_of(trained.parent / "out")


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(trained: Path, export: Path, worldloom: CommandLine) -> None:
    before = (export / "model.safetensors").stat().st_mtime_ns
    ended = worldloom("train", trained, "--inline")
    assert (ended.exit_code, str(export) in ended.stdout) == (0, True), ended.stderr
    assert (export / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_recipe_may_name_a_manifest(trained: Path, of_manifest: Path, worldloom: CommandLine) -> None:
    ended = worldloom("train", of_manifest, "--inline")
    assert ended.exit_code == 0, ended.stderr
    assert losses_of(of_manifest.parent / "out") == losses_of(trained.parent / "out")


@pytest.mark.parametrize(
    "assignment", ["curate.cut.min_s=0.6", "splits.val=0.5", "sources=[{videos: 'other/*.mp4'}]"], ids=str
)
def test_changed_curation_settings_name_the_fix(assignment: str, trained: Path, worldloom: CommandLine) -> None:
    ended = worldloom("train", trained, "--inline", "--set", assignment)
    assert ended.exit_code == 2
    assert "was built by other sources, curate or splits than the recipe has now" in ended.stderr
    assert "run `worldloom curate` first" in ended.stderr


def test_training_before_curation_names_the_fix(trained: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    ended = worldloom("train", trained, "--inline", "--set", f"out={tmp_path / 'empty'}")
    assert ended.exit_code == 2
    assert "has no data set yet; run `worldloom curate` first" in ended.stderr
    assert not (tmp_path / "empty").exists()


def test_a_missing_manifest_is_named(of_manifest: Path, worldloom: CommandLine) -> None:
    ended = worldloom("train", of_manifest, "--inline", "--set", "manifest=gone/_manifest.parquet")
    assert ended.exit_code == 2
    assert "gone/_manifest.parquet: no such file" in ended.stderr


def test_too_few_tokens_per_micro_batch_are_bad_input(of_manifest: Path, worldloom: CommandLine) -> None:
    ended = worldloom("train", of_manifest, "--inline", "--set", "train.batch.max_tokens_per_micro=1")
    assert ended.exit_code == 2
    assert ended.stderr.startswith("error ")
    assert "max_tokens_per_micro" in ended.stderr


@pytest.mark.slow
def test_bf16_in_this_process_is_warned_of(
    of_manifest: Path, worldloom: CommandLine, caplog: pytest.LogCaptureFixture
) -> None:
    changes = ("--set", "train.precision=bf16", "--set", "train.zero_stage=1", "--set", "train.steps=1")
    ended = worldloom("train", of_manifest, "--inline", *changes)
    assert ended.exit_code == 0, ended.stderr
    assert "training in this process computes in fp32" in caplog.text


def test_a_recipe_without_training_is_bad_input(trained: Path, worldloom: CommandLine) -> None:
    ended = worldloom("train", trained, "--inline", "--set", "train=null")
    assert (ended.exit_code, "has no section train" in ended.stderr) == (2, True)
