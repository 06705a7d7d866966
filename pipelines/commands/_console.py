"""Printing that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table

from cluster.telemetry import VisibleConsole, visible
from pipelines.curation import SegmentState
from pipelines.engine.step import FATES
from pipelines.ledger import Account

console = VisibleConsole(width=None if sys.stdout.isatty() else 140, emoji=False)
"""Standard output. Files and pipes get lines wide enough for the tables."""


def print_line(text: str) -> None:
    """Print text that may hold what looks like markup, such as a path, on one line."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_value(text: str) -> None:
    """Print a result for programs on a line of its own, exactly; on a terminal with control characters escaped."""
    print(visible(text) if sys.stdout.isatty() else text)


def table_of(title: str, columns: Sequence[str], numbers: Iterable[str] = ()) -> Table:
    """Return an empty table; columns named in `numbers` are aligned to the right."""
    right = set(numbers)
    table = Table(title=title or None, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def print_segments(states: Sequence[SegmentState]) -> None:
    """Print rows, fates and costs of each segment."""
    numbers = ("rows in", "new", *FATES, "seconds", "CPU s")
    table = table_of("Curation", ("segment", *numbers), numbers)
    for state in states:
        counts = {item["values"]: item["counts"] for item in pc.value_counts(state.rows.rows["fate"]).to_pylist()}
        new = state.n_pending if state.seconds else 0
        cells = [" > ".join(state.segment.labels), str(state.n_inputs), str(new)]
        fates = [str(counts.get(fate, 0)) for fate in FATES]
        table.add_row(*cells, *fates, f"{state.seconds:.1f}", f"{state.cpu_s:.1f}")
    console.print(table)


def print_accounts(accounts: Sequence[Account], max_reasons: int = 12) -> None:
    """Print the ledger, with the most frequent reasons."""
    for account in accounts:
        style = "" if account.balanced else "bold red"
        console.print(str(account), style=style, highlight=False, soft_wrap=True)
    table = table_of("Rows that were not kept", ("level", "fate", "step", "reason", "count"), ("count",))
    listed = [(account.level, *reason) for account in accounts for reason in account.reasons]
    for level, fate, step, reason, count in listed[:max_reasons]:
        table.add_row(level, fate, step, escape(reason), str(count))
    if listed:
        console.print(table)
    if len(listed) > max_reasons:
        more = len(listed) - max_reasons
        console.print(f"and {more} more reasons; `worldloom ledger --reasons {len(listed)}` lists all")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, the names in bold and aligned to the right."""
    console.print()
    for name, value in facts:
        console.print(f"[bold]{name:>14}[/]  {escape(value)}", soft_wrap=True, highlight=False)
