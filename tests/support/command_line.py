"""The command line run in this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from pipelines import cli


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str


class CommandLine:
    """Call it with the arguments of `worldloom`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["worldloom", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        printed = self._capsys.readouterr()
        return Ended(caught.value.code, printed.out, printed.err)
