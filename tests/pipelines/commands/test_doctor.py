"""`worldloom doctor`: what is missing is named with the command that installs it."""

from __future__ import annotations

import pytest

from cluster import session
from cluster.ray_settings import RaySettings
from pipelines.commands import doctor
from tests.support.command_line import CommandLine


@pytest.fixture
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ray_sees", lambda: "2 CPUs")


@pytest.mark.usefixtures("_without_ray")
def test_missing_packages_are_named_with_their_extra(worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    ended = worldloom("doctor")
    assert ended.exit_code == 1
    assert "pip install 'worldloom[models]'" in ended.stdout
    assert "MISSING: pip install torch" in ended.stdout


@pytest.mark.usefixtures("_without_ray")
def test_nothing_is_missing_here(worldloom: CommandLine) -> None:
    ended = worldloom("doctor")
    assert (ended.exit_code, "nothing required is missing" in ended.stdout) == (0, True), ended.stdout


def test_ray_that_does_not_start_is_reported(worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: RaySettings) -> None:
        raise ConnectionError("port 6379 is taken")

    monkeypatch.setattr(session, "ray_connection", fail)
    ended = worldloom("doctor")
    assert "nothing: Ray does not start: ConnectionError: port 6379 is taken" in ended.stdout
    assert "decoders" in ended.stdout
