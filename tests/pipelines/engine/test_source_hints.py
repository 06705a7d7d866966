"""Patterns that match nothing: the message says what the folder holds, or which folder was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine.source_hints import why_nothing_matches


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    """Return a folder with videos, captions and a folder of more videos."""
    for name in ("a.mp4", "b.mp4", "a.txt", "more/c.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("videos", "it is a folder; write {folder}/videos/**/* with a suffix"),
        ("vidoes/*.mp4", "there is no folder {folder}/vidoes; did you mean {folder}/videos?"),
        ("other/deep/*.mp4", "there is no folder {folder}/other"),
        ("videos/*.MP4", "{folder}/videos holds 2 .mp4, 1 .txt; capital and small letters differ"),
        ("videos/**/*.mov", "{folder}/videos holds 2 .mp4, 1 .txt, 1 .mkv;"),
        ("videos/x{1,2}.mp4", "{folder}/videos holds 2 .mp4, 1 .txt;"),
        ("empty/*.mp4", "{folder}/empty holds no file"),
    ],
)
def test_reason_of_a_pattern_that_matches_nothing(pattern: str, expected: str, footage: Path) -> None:
    assert why_nothing_matches(f"{footage}/{pattern}").startswith(expected.format(folder=footage))


def test_remote_patterns_are_not_looked_into() -> None:
    assert why_nothing_matches("s3://bucket/*.mp4") == ""
