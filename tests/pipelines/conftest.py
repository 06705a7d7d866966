"""Fixtures of tests of curation and of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import telemetry
from pipelines.commands import _console
from tests.support.command_line import CommandLine


@pytest.fixture
def worldloom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Return a function that runs a command in this process. Its lines are wide enough not to be folded."""
    for console in (_console.console, telemetry.console):
        monkeypatch.setattr(console, "width", 400)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def scan_recipe(tmp_path: Path) -> Path:
    """Return the file of a recipe that cuts the videos of `tmp_path/in` and trains no model. The folder is empty."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "my.yaml"
    sources = f"sources: [{{videos: '{tmp_path}/in/*.mp4'}}]"
    steps = "curate: [{scan: {}}, {cut: {}}]"
    path.write_text(f"name: mine\nout: {tmp_path / 'out'}\n{sources}\n{steps}\nmax_failed_share: 1\n")
    return path
