"""`worldloom export`: no recipe takes exported clips or samples for footage."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import storage
from tests.support.command_line import CommandLine

pytestmark = pytest.mark.slow


@pytest.fixture
def curated(worldloom: CommandLine, scan_recipe: Path) -> Path:
    """Return a recipe that has curated one file, which is no video, so that there are no clips to cut."""
    (scan_recipe.parent / "in" / "a.mp4").write_bytes(b"no video")
    assert worldloom("curate", scan_recipe, "--inline").exit_code == 0
    return scan_recipe


@pytest.fixture
def wide(curated: Path) -> Path:
    """Return a recipe of the same `out` whose source also matches mp4 files under `out`, but not its own samples."""
    path = curated.with_name("wide.yaml")
    path.write_text(curated.read_text().replace("/in/*.mp4", "/**/[!s]*.mp4"))
    return path


@pytest.mark.parametrize("layout", ["mp4", "fastvideo"])
def test_clip_files_may_not_match_a_source(layout: str, curated: Path, wide: Path, worldloom: CommandLine) -> None:
    assert worldloom("export", curated, "--to", layout, "--inline").exit_code == 0
    assert worldloom("export", curated, "--to", layout, "--inline", "--out", curated.parent / "in").exit_code == 2
    ended = worldloom("export", wide, "--to", layout, "--inline")
    assert ended.exit_code == 2
    assert "would take exported clips for footage" in ended.stderr


@pytest.mark.parametrize("layout", ["webdataset", "hf-parquet"])
def test_packed_clips_match_no_source(layout: str, wide: Path, worldloom: CommandLine) -> None:
    assert worldloom("export", wide, "--to", layout, "--inline").exit_code == 0


@pytest.mark.parametrize("made", ["samples/x.mp4", "export-2/train/x.mp4"])
def test_samples_and_exports_are_no_footage(made: str, wide: Path, worldloom: CommandLine) -> None:
    assert worldloom("plan", wide).exit_code == 0
    uri = str(wide.parent / "out" / made)
    storage.write_bytes(uri, b"made here")
    ended = worldloom("plan", wide)
    assert ended.exit_code == 2
    assert f"{uri} is no footage" in ended.stderr


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [("--to", "avi", "fastvideo, hf-parquet, mp4, webdataset"), ("--split", "some", "train, val, test")],
)
def test_unknown_formats_and_splits_are_bad_input(
    option: str, value: str, known: str, curated: Path, worldloom: CommandLine
) -> None:
    ended = worldloom("export", curated, "--to", "mp4", option, value)
    assert ended.exit_code == 2
    assert f"{option} {value}: write " in ended.stderr
    assert known in ended.stderr
