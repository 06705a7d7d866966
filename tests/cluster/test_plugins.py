"""Plug-ins are found by the name of their module and by the contract of their folder."""

from __future__ import annotations

import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import not_installed_here", "cannot be imported: No module named 'not_installed_here'"),
        ("x = 1\nx.y", r"AttributeError: 'int' object has no attribute 'y' \(.*broken_plugin\.py:2\)"),
        ("def f(:", r"SyntaxError: invalid syntax \(broken_plugin\.py, line 1\)"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*broken_plugin\.py:1\)"),
    ],
)
def test_a_plug_in_whose_module_fails_is_named(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    monkeypatch.setattr(plugins, "_entry_points", lambda folder: {"mine": "broken_plugin"})
    with pytest.raises(ValueError, match=rf"plug-in 'mine': its module 'broken_plugin' .*{message}"):
        load(FOLDER, "mine", CaptionerSettings)
    plugins._warn_once.cache_clear()
    assert "mine" not in dict(plugins.classes(FOLDER, CaptionerSettings))
    assert "plug-in 'mine': its module 'broken_plugin' cannot be imported" in caplog.text
