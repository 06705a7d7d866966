"""`worldloom launch`: what it sends, and what it refuses to send."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.command_line import CommandLine

RECIPE = """\
name: mine
out: s3://bucket/out
sources: [{videos: "s3://bucket/in/*.mp4"}]
curate: [{scan: {}}, {cut: {}}]
launch: {kuberay: {image: "worldloom:1"}, slurm: {nodes: 3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_the_recipe_is_sent_whole(worldloom: CommandLine, recipe: Path) -> None:
    ended = worldloom("launch", recipe, "--on", "ray-job", "--dry-run", "--set", "curate.cut.max_s=7")
    assert ended.exit_code == 0, ended.stderr
    sent = yaml.safe_load(json.loads(ended.stdout)["runtime_env"]["env_vars"]["WORLDLOOM_RECIPE"])
    assert sent["ray"] == {"address": "auto"}
    assert sent["curate"][1]["cut"]["max_s"] == 7
    assert "launch" not in sent


def test_each_target_prints_its_file(worldloom: CommandLine, recipe: Path) -> None:
    ended = worldloom("launch", recipe, "--on", "slurm", "--dry-run", "--set", "launch.slurm.time=9:00:00")
    assert ended.exit_code == 0, ended.stderr
    assert "#SBATCH --nodes=3\n" in ended.stdout
    assert "#SBATCH --time=9:00:00\n" in ended.stdout
    ended = worldloom("launch", recipe, "--on", "kuberay", "--dry-run", "--command", "curate")
    assert ended.exit_code == 0, ended.stderr
    _, job = yaml.safe_load_all(ended.stdout)
    assert job["spec"]["entrypoint"].startswith("worldloom curate /")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("launch.kuberay=null", "KubeRay needs an image with worldloom"),
        ("out=runs/mine", "out: runs/mine is a local path, and the pods of KubeRay share none"),
        ("launch.slurm.time=2h", "launch.slurm.time: '2h' is no time of Slurm"),
        ("launch.kuberay.cpu_pool.replicas=2", "unknown key 'replicas'"),
    ],
)
def test_what_cannot_be_launched(worldloom: CommandLine, recipe: Path, change: str, message: str) -> None:
    ended = worldloom("launch", recipe, "--on", "kuberay", "--dry-run", "--set", change)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert message in ended.stderr


def test_programs_get_the_file(
    worldloom: CommandLine, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text('#!/bin/sh\ncat > "$0.stdin"\necho Submitted batch job 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ended = worldloom("launch", recipe, "--on", "slurm")
    assert (ended.exit_code, ended.stdout) == (0, "Submitted batch job 7\n")
    assert (tmp_path / "sbatch.stdin").read_text().startswith("#!/bin/bash\n#SBATCH ")


def test_a_job_with_gpus_trains_on_them_alone(worldloom: CommandLine, recipe: Path) -> None:
    def device(target: str, *changes: str) -> str:
        sets = ("curate=[]", "sources=[]", "manifest=s3://bucket/m.parquet", "train.steps=500", *changes)
        ended = worldloom("launch", recipe, "--on", target, "--dry-run", *(f"--set={change}" for change in sets))
        assert ended.exit_code == 0, ended.stderr
        (line,) = {line.strip() for line in ended.stdout.splitlines() if line.strip().startswith("device:")}
        return line.removeprefix("device: ")

    assert device("slurm", "launch.slurm.gpus_per_node=8") == "cuda"
    assert device("slurm") == "auto"
    assert device("kuberay") == "cuda"
    assert device("kuberay", "train.device=cpu") == "cpu"
    assert device("kuberay", "launch.kuberay.gpu_pool.max_replicas=0") == "auto"
