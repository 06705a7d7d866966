"""Lines on a terminal: control characters of names and captions are shown, not obeyed."""

from __future__ import annotations

import io
import logging

import pytest
from rich.markup import escape
from rich.table import Table

from cluster import telemetry
from cluster.telemetry import VisibleConsole, configure_logging, log, visible

ODD = "a\x1b]0;title\x07\x1b[2K\r\x9b1mb[bold]"
SHOWN = r"a\x1b]0;title\x07\x1b[2K\x0d\x9b1mb[bold]"


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> VisibleConsole:
    """Return the console of this process, which writes to memory."""
    console = VisibleConsole(file=io.StringIO(), width=200, emoji=False)
    monkeypatch.setattr(telemetry, "console", console)
    return console


def written(console: VisibleConsole) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_text_keeps_its_lines_and_letters() -> None:
    assert visible("é猫\n\ta b") == "é猫\n\ta b"
    assert visible(ODD) == SHOWN


def test_the_console_obeys_no_text(console: VisibleConsole) -> None:
    console.print(ODD, markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]name[/] {escape(ODD)}", highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_row(escape(ODD))
    console.print(table)
    assert written(console).count(SHOWN) == 3
    assert not set("\x1b\x07\r\x9b") & set(written(console))


def test_log_lines_and_progress_obey_no_text(console: VisibleConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = logging.getLogger().handlers[:]
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging()
    log.warning("%s: a name", ODD)
    assert logging.getLogger().handlers != handlers
    with telemetry.progress(f"{ODD} description", 1) as bar:
        bar.advance(1, f"{ODD} note")
    for words in ("WARNING worldloom: " + SHOWN, SHOWN + " description: 1 of 1", SHOWN + " note"):
        assert words in written(console)


def test_lines_of_progress_have_the_time_left(console: VisibleConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 60.0, 7200.0, 9000.0])
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: next(clock))
    with telemetry.progress("sampling", 10) as bar:
        for amount in (1, 1, 8):
            bar.advance(amount)
    assert written(console).splitlines() == [
        "sampling: 1 of 10, 9 min left",
        "sampling: 2 of 10, 8.0 h left",
        "sampling: 10 of 10",
    ]
