"""`worldloom doctor`: what is missing is named with the command that installs it."""

from __future__ import annotations

import pytest

from pipelines.commands import doctor
from tests.support.command_line import CommandLine


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ray_sees", dict)


def test_missing_packages_are_named_with_their_extra(worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    ended = worldloom("doctor")
    assert ended.exit_code == 1
    assert "pip install 'worldloom[models]'" in ended.stdout
    assert "MISSING: pip install torch" in ended.stdout


def test_nothing_is_missing_here(worldloom: CommandLine) -> None:
    ended = worldloom("doctor")
    assert (ended.exit_code, "nothing required is missing" in ended.stdout) == (0, True), ended.stdout
