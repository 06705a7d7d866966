"""`worldloom audit --reference`: a benchmark's files are looked for among the clips."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.videos import encode, sliding

pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark(footage: Path, tmp_path: Path) -> Path:
    """Return a folder with a darker copy of a training video, a video of its own, a broken one and a text."""
    folder = tmp_path / "benchmark.v2" / "part"
    folder.mkdir(parents=True)
    encode(folder / "copy.mp4", sliding(40, 2.0, 96, 64, seed=1) // 10 * 9, time_base=Fraction(1, 24))
    encode(folder / "new.mp4", sliding(40, 7.0, 96, 64, seed=77), time_base=Fraction(1, 24))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("a benchmark")
    return folder.parent


def test_a_copy_of_a_training_clip_is_found(trained: Path, benchmark: Path, worldloom: CommandLine) -> None:
    ended = worldloom("audit", trained, "--reference", benchmark, "--inline", "--json")
    assert ended.exit_code == 1, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["files"], found["not_compared"]) == (3, 1)
    (match,) = found["matches"]
    assert match["reference"].endswith("/copy.mp4")
    assert match["source"].endswith("/1.mp4")
    assert match["split"] in ("train", "val")
    assert match["share"] > 0.9
    again = worldloom("audit", trained, "--reference", benchmark, "--inline")
    assert "1 of 3 reference files are in the data set" in again.stdout
    assert "scan:" not in again.stderr, "what was scanned once is not scanned again"


def test_files_of_ones_own_are_clean(trained: Path, benchmark: Path, worldloom: CommandLine) -> None:
    ended = worldloom("audit", trained, "--reference", benchmark / "part" / "n*.mp4", "--inline")
    assert ended.exit_code == 0, ended.stderr
    assert "clean: none of 1 reference files is in the data set" in ended.stdout


@pytest.mark.usefixtures("footage")
def test_wrong_references_are_named(trained: Path, tmp_path: Path, worldloom: CommandLine) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "empty",), "no video and no image matches"),
        ((tmp_path, "--pairs", "3"), "--reference is an audit of its own"),
    ):
        ended = worldloom("audit", trained, "--reference", *arguments, "--inline")
        assert ended.exit_code == 2
        assert message in ended.stderr
