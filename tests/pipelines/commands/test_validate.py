"""`worldloom validate`: what a look at the footage tells, and what would be wrong on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cluster.resources import ClusterSize
from pipelines.commands import validate
from tests.support.command_line import CommandLine

RECIPE = """
name: mine
out: {folder}/out
sources:
  - {{images: "{folder}/photos/*.png", captions: sidecar}}
  - {{images: "{folder}/more/*.png"}}
curate:
  - scan: {{}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a recipe of 40 photos, of which the last is bad, and of one more."""
    for name in [f"photos/{i:02}.png" for i in range(39)] + ["more/a.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "photos" / "00.txt").write_text("a photo")
    (tmp_path / "photos" / "38.png").write_bytes(b"no image")
    (tmp_path / "photos" / "39.png").write_bytes(b"")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_files_of_each_source_are_counted_and_tried(recipe: Path, worldloom: CommandLine) -> None:
    ended = worldloom("validate", recipe, "--sources")
    first, second, last = ended.stdout.splitlines()
    assert ended.exit_code == 0
    assert first.startswith(f"sources.0: {recipe.parent}/photos/*.png: 40 files, ")
    assert "1 with a caption, opened 19 of 20 tried, first bad: " in first
    assert "38.png: " in first
    assert second.startswith(f"sources.1: {recipe.parent}/more/*.png: 1 files, ")
    assert second.endswith(", 0 with a caption, opened 1 of 1 tried")
    assert last == f"{recipe}: ok: 1 steps, does not train"


def test_a_source_of_bad_files_alone_exits_1(recipe: Path, worldloom: CommandLine) -> None:
    (recipe.parent / "more" / "a.png").write_bytes(b"no image")
    ended = worldloom("validate", recipe, "--sources")
    assert ended.exit_code == 1
    assert ended.stdout.endswith("1 of 2 sources have no file that can be opened\n")


def test_every_pattern_that_matches_nothing_is_named(recipe: Path, worldloom: CommandLine) -> None:
    for name in ("photos", "more"):
        (recipe.parent / name).rename(recipe.parent / f"{name}x")
    ended = worldloom("validate", recipe, "--sources")
    assert ended.exit_code == 2
    for index, name in enumerate(("photos", "more")):
        assert (
            f"sources.{index}: no file matches images: {recipe.parent}/{name}/*.png: there is no folder" in ended.stderr
        )
        assert f"did you mean {recipe.parent}/{name}x?" in ended.stderr
    assert worldloom("validate", recipe).exit_code == 0, "without --sources, no file is looked for"


def test_more_workers_than_cores_are_warned_of(
    recipe: Path, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "this_machine", lambda: ClusterSize(2))
    encode = "encode: {autoencoder: linear, buckets: [{size: 64, frames: [17], fps: 8}]}"
    curate = f"curate=[{{scan: {{}}}}, {{cut: {{}}}}, {{caption: {{engine: signals}}}}, {{{encode}}}]"
    sets = ("--set", curate, "--set", "train={workers: 64}")
    ended = worldloom("validate", recipe, *sets)
    assert ended.exit_code == 0, ended.stderr
    assert "warning: train.workers: on this machine, at least 64 workers need one CPU core each" in ended.stdout
    assert "warning" not in worldloom("validate", recipe, *sets, "--set", "ray.address=auto").stdout


def test_code_of_a_model_needs_the_flag(recipe: Path, worldloom: CommandLine) -> None:
    engine = "{name: vllm, model: hf-hub:a/b, trust_remote_code: true}"
    recipe.write_text(
        f"{recipe.read_text()}  - cut: {{}}\n  - frames: {{}}\n  - caption: {{engine: {engine}, prompt: dense}}\n"
    )
    ended = worldloom("validate", recipe)
    assert ended.exit_code == 2
    assert f"{recipe}:11: curate.3.caption.engine.trust_remote_code: brings code" in ended.stderr
    assert worldloom("validate", recipe, "--allow-remote-code").exit_code == 0
    assert worldloom("plan", recipe).exit_code == 0, "a command that runs no model needs no flag"
