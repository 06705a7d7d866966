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


@pytest.mark.slow
@pytest.mark.usefixtures("_without_ray")
def test_nothing_is_missing_here(worldloom: CommandLine) -> None:
    ended = worldloom("doctor")
    assert (ended.exit_code, "nothing required is missing" in ended.stdout) == (0, True), ended.stdout


@pytest.mark.usefixtures("_without_ray")
def test_optional_packages_are_notes(worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda module: None if module in doctor.OPTIONAL else "1.0")
    ended = worldloom("doctor")
    assert (ended.exit_code, ended.stdout.count("not installed; pip install")) == (0, len(doctor.OPTIONAL))


def test_a_module_counts_whatever_package_brought_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """scenedetect comes from scenedetect or scenedetect-headless, and some builds have no metadata."""
    monkeypatch.setattr(doctor, "_packages_of_modules", lambda: {"scenedetect": ["pytest"]})
    assert doctor._version("scenedetect") == pytest.__version__
    assert doctor._version("torch") == "of an unknown version"
    assert doctor._version("no_such_module") is None


@pytest.mark.slow
def test_ray_that_does_not_start_is_reported(worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: RaySettings) -> None:
        raise ConnectionError("port 6379 is taken")

    monkeypatch.setattr(session, "ray_connection", fail)
    ended = worldloom("doctor")
    assert "nothing: Ray does not start: ConnectionError: port 6379 is taken" in ended.stdout
    assert "decoders" in ended.stdout
