"""Plug-ins are found by the name of their module and by the contract of their folder."""

from __future__ import annotations

import pytest

from captioning.engine import FOLDER, CaptionerSettings
from captioning.engines.signals import Signals
from cluster import plugins
from cluster.plugins import build, load, names


def test_names_include_the_modules_of_the_folder() -> None:
    assert "signals" in names(FOLDER)


def test_load_returns_the_class_of_a_module() -> None:
    assert load(FOLDER, "signals", CaptionerSettings) is Signals


def test_load_refuses_a_module_outside_the_folder() -> None:
    with pytest.raises(ValueError, match=r"unknown name 'os\.path'"):
        load(FOLDER, "os.path", CaptionerSettings)


def test_an_entry_point_without_its_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_entry_points", lambda folder: {"mine": "gone.mine"})
    with pytest.raises(
        ValueError, match=r"plug-in 'mine': its module 'gone\.mine' cannot be imported: No module named"
    ):
        load(FOLDER, "mine", CaptionerSettings)


def test_build_refuses_data_without_a_name() -> None:
    with pytest.raises(ValueError, match="write a name"):
        build(FOLDER, CaptionerSettings, 3)
