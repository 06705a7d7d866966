"""The command line: one module per command, bad input in one line with exit code 2, and paths printed unchanged."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import cli, commands
from pipelines.commands import export, quarantine
from pipelines.commands import plan as plan_command
from pipelines.commands._console import print_accounts
from pipelines.commands.quarantine import Failure
from pipelines.errors import UNEXPECTED
from pipelines.export.exporter import Summary
from pipelines.ledger import Account
from tests.support.command_line import CommandLine
from tests.support.paths import ROOT
from training.data.footer import DamagedError

ODD = "/films/[bold]a [/dim] b.mp4"
"""A path that looks like markup of the library that prints: one tag would vanish, the other would be an error."""

NAMES = sorted(path.stem for path in Path(commands.__path__[0]).glob("*.py") if not path.stem.startswith("_"))


def test_every_module_of_commands_is_registered() -> None:
    modules = [module for modules in cli.COMMANDS.values() for module in modules]
    assert sorted(module.__name__ for module in modules) == [f"pipelines.commands.{name}" for name in NAMES]
    registered = {command.callback: command.name for command in cli.app.registered_commands}
    assert registered == {module.command: module.__name__.rpartition(".")[2].replace("_", "-") for module in modules}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help(name: str, worldloom: CommandLine) -> None:
    ended = worldloom(name.replace("_", "-"), "--help")
    assert ended.exit_code == 0
    assert f"worldloom {name.replace('_', '-')}" in ended.stdout


def test_paths_that_look_like_markup_are_unchanged(worldloom: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    fates = {"kept": 0, "dropped": 0, "failed": 1, "duplicate": 0}
    print_accounts([Account("videos", 1, fates, (("failed", "scan", f"DecodeError: {ODD}", 1),))])
    quarantine.print_failures([Failure("uid", ODD, None, "scan", "DecodeError", f"{ODD}: is damaged")])
    export.print_summary(Summary(ODD, 1, 0, 1, 0, 5, (("uid", f"{ODD}: is damaged"),) * 13))
    # One reason, two cells of a failure, one summary, and the 12 failures and one file that it names.
    assert capsys.readouterr().out.count(ODD) == 1 + 2 + 1 + 12 + 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError(ODD), DamagedError(ODD), OSError(28, "No space left on device", ODD)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_one_line(error: Exception, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, assignments: list[str] | None) -> None:
        raise error

    monkeypatch.setattr(plan_command, "read_recipe", fail)
    ended = worldloom("plan", "my.yaml")
    assert ended.exit_code == 1
    assert ended.stderr.startswith("failed ")
    assert ended.stderr.count("\n") == 1
    assert ODD in ended.stderr


def test_a_value_error_of_a_library_keeps_its_traceback(
    worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_command, "read_recipe", lambda path, assignments: json.loads("{"))
    ended = worldloom("plan", "my.yaml")
    assert ended.exit_code == UNEXPECTED
    assert "Traceback (most recent call last)" in ended.stderr
    assert "json.decoder.JSONDecodeError" in ended.stderr


def test_a_missing_recipe_is_named(worldloom: CommandLine) -> None:
    ended = worldloom("validate", ODD)
    assert (ended.exit_code, ended.stderr) == (2, f"error {ODD}: no such file\n")


def test_validate_names_what_a_recipe_does(worldloom: CommandLine, scan_recipe: Path) -> None:
    ended = worldloom("validate", scan_recipe)
    assert (ended.exit_code, ended.stdout) == (0, f"{scan_recipe}: ok: 2 steps, does not train\n")


@pytest.mark.slow
def test_the_schema_is_printed_as_json(worldloom: CommandLine) -> None:
    assert "curate" in json.loads(worldloom("schema").stdout)["properties"]


def test_steps_are_listed_with_settings_and_columns(worldloom: CommandLine) -> None:
    listed = worldloom("steps").stdout
    for text in ("\nscan", "\n    writes fps", "\n    min_s", "\nencode"):
        assert text in listed, text


@pytest.mark.slow
def test_the_command_line_loads_no_ray_and_no_charts() -> None:
    code = "import sys, pipelines.cli; print(sorted({'ray', 'deepspeed', 'plotly'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    assert found == "[]"


def test_the_version_is_that_of_the_package(worldloom: CommandLine) -> None:
    ended = worldloom("--version")
    assert (ended.exit_code, ended.stdout) == (0, f"worldloom {importlib.metadata.version('worldloom')}\n")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "xml"])
def test_errors_are_lines_of_a_json_log(form: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "plan", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "WORLDLOOM_LOG": form},
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    if form == "json":
        line = json.loads(ended.stderr)
        assert (line["level"], "none.yaml" in line["message"]) == ("ERROR", True)
    else:
        assert ended.stderr == "error WORLDLOOM_LOG=xml: write text or json\n"


@pytest.fixture
def _signals() -> Iterator[None]:
    """Let SIGINT raise `KeyboardInterrupt`, which a process in the background ignores, and restore all handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("under_ray", [False, True])
def test_a_signal_says_that_work_is_kept(
    number: signal.Signals, under_ray: bool, worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, assignments: list[str] | None) -> None:
        if under_ray:  # Ray's own handlers
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(number)

    monkeypatch.setattr(plan_command, "read_recipe", interrupt)
    ended = worldloom("plan", "recipe.yaml")
    assert ended.exit_code == 130
    assert "stopped; finished work is kept, and the same command resumes" in ended.stderr
