"""Log lines and progress bars, for a terminal, a log file or a collector of JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG_VARIABLE = "WORLDLOOM_LOG"
"""Environment variable with the form of the log: `text`, the default, or `json`."""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@contextlib.contextmanager
def silenced(library: Any, level: int) -> Iterator[None]:
    """Turn off the progress bars of a Hugging Face library inside the block, and its log lines below a level.

    `library` is its module `utils.logging`, and `level` one of Python's module `logging`.
    """
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(level)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()


def visible(text: str) -> str:
    """Return text with control characters as escapes of hexadecimal digits, except for line breaks and tabs.

    File names and captions may hold any: ESC begins a command to the terminal, which may hide or rewrite its lines.
    """
    return CONTROL_CHARACTERS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class VisibleConsole(Console):
    """A console that shows control characters of the text it is given, in tables too, instead of obeying them."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(visible(text), **options)


console = VisibleConsole(stderr=True, emoji=False)
"""Console on standard error, for people. Standard output is reserved for results that programs read.

Names of emoji, such as :x:, are parts of keys and paths here."""

log = logging.getLogger("worldloom")


class _ConsoleHandler(logging.Handler):
    """A log handler that shares the console with progress bars, which a line written past it would break."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class JsonFormatter(logging.Formatter):
    """Makes each record one line, a JSON object.

    It has `time` (UTC), `level`, `logger`, `message`, `host` and `process`; `exception`, the traceback, if there is
    one; and the record's attribute `facts`, a mapping, if it has one.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "host": socket.gethostname(),
            "process": record.process,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def logs_json() -> bool:
    """Return whether the log is JSON."""
    return os.environ.get(LOG_VARIABLE) == "json"


def configure_logging() -> None:
    """Send the log lines of this process, those of libraries included, to standard error, above any progress bar.

    In a JSON log there are no bars, and warnings of Python are lines too. Raises `ValueError` for an unknown form.
    """
    form = os.environ.get(LOG_VARIABLE, "")
    if form not in ("", "text", "json"):
        raise ValueError(f"{LOG_VARIABLE}={form}: write text or json")
    handler: logging.Handler
    if logs_json():
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.captureWarnings(True)
    else:
        handler = _ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    log.setLevel(logging.INFO)


def tell(message: str, level: int = logging.INFO, kind: str = "", **facts: float) -> None:
    """Write a line that has no time and level on the console: `kind`, in red, and a message that may hold markup.

    In a JSON log it is a record of `level`, with `facts`.
    """
    if logs_json():
        log.log(level, message, extra={"facts": facts})
    else:
        label = f"[bold red]{kind}[/] " if kind else ""
        console.print(f"{label}{escape(message)}", highlight=False, soft_wrap=True)


class ProgressBar(Protocol):
    """A progress display that long work reports to."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Add `amount` to the work done, and show `note` beside it."""


class _RichBar:
    """A progress bar on a terminal."""

    def __init__(self, progress: Progress, total: float | None, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(visible(description), total=total, note="")

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self._progress.update(self._task, advance=amount, note=visible(note))


class _LineBar:
    """A progress display for log files: one line per tenth of the total, with the time left at the rate so far."""

    def __init__(self, total: float | None, description: str) -> None:
        self._total, self._description, self._done, self._tenths = total, description, 0.0, 0
        self._start_s = time.monotonic()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self._done += amount
        if not self._total:
            return
        tenths = int(10 * self._done / self._total)
        if tenths > self._tenths:
            self._tenths = tenths
            left_s = (time.monotonic() - self._start_s) * (self._total / self._done - 1)
            left = f", {_duration(left_s)} left" if left_s > 0 else ""
            line = f"{self._description}: {self._done:g} of {self._total:g}{left} {note}".rstrip()
            tell(line, done=self._done, total=self._total)


def _duration(seconds: float) -> str:
    """Return a duration as people estimate it: 40 s, 3 min or 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress(description: str, total: float | None) -> Iterator[ProgressBar]:
    """Show a progress bar on a terminal, or write a line per tenth of `total` elsewhere. None: the total is unknown."""
    if logs_json() or not console.is_terminal:
        yield _LineBar(total, description)
        return
    left = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    columns = (*left, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False))
    # By default the rate is that of the last 30 s, in which a long piece of work may have no end.
    with Progress(*columns, console=console, speed_estimate_period=3600) as display:
        yield _RichBar(display, total, description)
