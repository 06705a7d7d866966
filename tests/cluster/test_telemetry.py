"""Lines on a terminal, where control characters of names and captions are shown and not obeyed, and lines of JSON."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from rich.markup import escape
from rich.table import Table

from cluster import telemetry
from cluster.telemetry import LOG_VARIABLE, VisibleConsole, configure_logging, log, tell, visible

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


def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure the log of a process in which nobody has, as pytest did of this one."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging()


def test_log_lines_and_progress_obey_no_text(console: VisibleConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(monkeypatch)
    log.warning("%s: a name", ODD)
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


def test_a_json_log_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(LOG_VARIABLE, "json")
    start = datetime.now(UTC)
    configured(monkeypatch)
    log.info("%s: a name\nin two lines", ODD)
    try:
        raise ValueError("at fault")
    except ValueError:
        log.exception("failed")
    with telemetry.progress("sampling", 2) as bar:
        bar.advance(1, "clip 7")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    logging.captureWarnings(False)
    tell("the [end]", logging.ERROR, "error")
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.err.splitlines()]
    name, failed, progress, warning, end = lines
    assert name["message"] == f"{ODD}: a name\nin two lines"
    assert all((line["host"], line["process"]) == (socket.gethostname(), os.getpid()) for line in lines)
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert start - timedelta(milliseconds=1) <= times[0] <= times[-1] <= datetime.now(UTC)
    assert (name["level"], name["logger"], failed["level"]) == ("INFO", "worldloom", "ERROR")
    assert failed["exception"].endswith("ValueError: at fault")
    assert (progress["done"], progress["total"], "clip 7" in progress["message"]) == (1, 2, True)
    assert (warning["level"], "UserWarning: old" in warning["message"]) == ("WARNING", True)
    assert (end["level"], end["message"], printed.out) == ("ERROR", "the [end]", "")


def test_an_unknown_form_of_the_log_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_VARIABLE, "xml")
    with pytest.raises(ValueError, match="WORLDLOOM_LOG=xml: write text or json"):
        configure_logging()
