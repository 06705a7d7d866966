"""Errors on the command line: what is said, the exit code, and which of them keep their traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from cluster import storage
from cluster.config import ConfigError
from pipelines.engine.step import RunError
from pipelines.errors import BAD_INPUT, FAILED, UNEXPECTED, check_arguments, explain
from tests.support.command_line import CommandLine
from tests.support.paths import ROOT
from training.data.buckets import parse_bucket_name
from training.data.footer import DamagedError
from training.sampling.solvers.euler import Euler
from training.stopping import NonFiniteLossError


class _CarriedError(RuntimeError):
    """An error as Ray carries it from a worker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long traceback of the worker")
        self.cause = cause


_CarriedError.__module__ = "ray.exceptions"


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigError("a.yaml:1: b"), BAD_INPUT),
        (RunError("the disk is full"), FAILED),
        (DamagedError("a.parquet: row 3 differs"), FAILED),
        (NonFiniteLossError("step 3: the loss is nan"), FAILED),
        (OSError(28, "No space left on device", "/a"), FAILED),
        (MemoryError("tensor of 9 GB"), FAILED),
        (_CarriedError(RunError("the disk is full")), FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_expected_errors_are_explained(error: Exception, exit_code: int) -> None:
    explanation = explain(error)
    assert explanation is not None
    assert explanation.exit_code == exit_code
    assert str(getattr(error, "cause", error)) in explanation.text


def test_a_damaged_shard_says_how_to_make_it_again() -> None:
    explanation = explain(DamagedError("/out/tables/latents-1/bucket=80x48x9/part-1.parquet: cannot be opened: gone"))
    assert explanation is not None
    assert "remove it if it is there and run `worldloom curate`" in explanation.text


def raised_by(call: Callable[[], object]) -> Exception:
    """Return the error that a call raises, with its traceback."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_error_that_our_code_raises_is_explained() -> None:
    explanation = explain(raised_by(lambda: Euler().solve(lambda x, time: x, torch.zeros(1), [0.0])))
    assert explanation is not None
    assert "times must fall strictly" in explanation.text
    assert explanation.exit_code == BAD_INPUT


def carry_a_key_error() -> None:
    raise _CarriedError(KeyError("a"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: parse_bucket_name("axb"),  # our code calls int("a")
        lambda: torch.zeros(2).reshape(3),
        lambda: {}["a"],
        carry_a_key_error,
    ],
    ids=["int", "torch", "key", "worker"],
)
def test_errors_that_nobody_wrote_a_message_for_are_not(call: Callable[[], object]) -> None:
    assert explain(raised_by(call)) is None


def test_an_unexpected_error_says_how_to_report_it(worldloom: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.commands.plan.read_recipe", lambda path, assignments: {}["[bold]a"])
    ended = worldloom("plan", "my recipe.yaml", "--set", "a=[b]")
    assert ended.exit_code == UNEXPECTED
    assert "Traceback (most recent call last)" in ended.stderr
    assert "KeyError: '[bold]a'" in ended.stderr
    assert "Please report it" in ended.stderr
    assert re.search(r"worldloom \d\S+, Python 3\.", ended.stderr)
    assert ended.stderr.endswith("worldloom plan 'my recipe.yaml' --set 'a=[b]'\n")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part-1.parquet"
    storage.write_table(str(path), pa.table({"a": list(range(1000))}))
    whole = path.read_bytes()
    for content in (b"", whole[:-100], b"x" * 100, whole[:4] + b"\xff" * 300 + whole[304:]):
        path.write_bytes(content)
        with pytest.raises(storage.DamagedFileError, match=re.escape(f"{path}: is damaged: ")) as caught:
            storage.read_table(str(path))
        explanation = explain(caught.value)
        assert explanation is not None
        assert (explanation.exit_code, "remove it" in explanation.text) == (FAILED, True)
        assert "\n" not in explanation.text


def test_bytes_that_are_no_text_are_refused_as_arguments(worldloom: CommandLine) -> None:
    check_arguments(["sample", "--prompt", "一只猫"])
    broken = b"a caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(ConfigError, match=r"argument 3 is not UTF-8 text: a caf\\xe9; write it in UTF-8"):
        check_arguments(["sample", "--prompt", broken])
    ended = worldloom("sample", "--model", "x", "--prompt", broken)
    assert (ended.exit_code, ended.stderr.startswith("error argument 5 is not UTF-8")) == (BAD_INPUT, True)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_output_that_is_not_utf_8_shows_escapes(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "猫.yaml"
    path.write_text("name: 猫\n", encoding="utf-8")
    for command in (["validate", str(path)], ["steps"], ["--help"]):
        ended = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *command],
            capture_output=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONCOERCECLOCALE": "0", **environment},
        )
        assert b"Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode == (BAD_INPUT if command[0] == "validate" else 0), ended.stderr
