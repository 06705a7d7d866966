"""Log lines, progress and timings, for people at a terminal and for files."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
"""Where people read; standard output is left for results that programs read."""

log = logging.getLogger("worldloom")


def configure_logging(verbose: bool = False) -> None:
    """Send log lines of this process to standard error; errors of libraries too."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


class Bar(Protocol):
    """What a long piece of work reports to."""

    def advance(self, amount: float = 1.0, note: str = "") -> None: ...


class _RichBar:
    def __init__(self, progress: Progress, total: float | None, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self._progress.update(self._task, advance=amount, note=note)


class _LineBar:
    """Where there is no terminal: a line at each tenth of the way."""

    def __init__(self, total: float | None, description: str) -> None:
        self._total, self._description, self._done, self._tenths = total, description, 0.0, 0

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self._done += amount
        if not self._total:
            return
        tenths = int(10 * self._done / self._total)
        if tenths > self._tenths:
            self._tenths = tenths
            console.print(
                f"{self._description}: {self._done:g} of {self._total:g} {note}".rstrip(), highlight=False, markup=False
            )


@contextlib.contextmanager
def progress(description: str, total: float | None) -> Iterator[Bar]:
    """A progress bar on a terminal, a few lines elsewhere."""
    if not console.is_terminal:
        yield _LineBar(total, description)
        return
    left = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns = (*left, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as display:
        yield _RichBar(display, total, description)
