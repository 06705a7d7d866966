"""What the commands that keep an `out` in order print: failures, what is forgotten, what is collected."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from pipelines.commands.gc import Folder
from pipelines.commands.quarantine import Failure
from pipelines.forgetting.request import Outcome
from pipelines.forgetting.work import Work
from pipelines.show import console


def failures(found: Sequence[Failure], files: int = 3) -> None:
    """Failures by step and class: how many, of which files, with which messages; at most `files` of each."""
    groups: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in found:
        groups[failure.step, failure.error].append(failure)
    table = Table(title="Failures", title_justify="left")
    for name in ("step", "class", "rows", "files", "message"):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for (step, error), members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        lines = [(_place(failure), failure.message) for failure in members[:files]]
        more = [(f"and {len(members) - files} more (--json has all)", "")] if len(members) > files else []
        for i, (place, message) in enumerate([*lines, *more]):
            table.add_row(
                *((step, escape(error), str(len(members))) if i == 0 else ("", "", "")), escape(place), escape(message)
            )
    if found:
        console.print(table)
    console.print(f"{len(found)} failed rows in {len({failure.source for failure in found})} files", highlight=False)


def failures_json(found: Sequence[Failure]) -> str:
    return json.dumps([asdict(failure) for failure in found], indent=1, ensure_ascii=False)


def _place(failure: Failure) -> str:
    return (
        failure.source
        if failure.span_s is None
        else f"{failure.source} {failure.span_s[0]:.2f}-{failure.span_s[1]:.2f} s"
    )


def to_forget(work: Work) -> None:
    """What a request is about to remove."""
    span = "" if work.span is None else ", " + " to ".join(f"{_seconds(edge):.3f} s" for edge in work.span)
    console.print(f"[bold]forget[/] {escape(work.uri)}{span}", highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("table")
    table.add_column("rows", justify="right")
    for name, count in work.rows:
        table.add_row(name, str(count))
    if work.rows:
        console.print(table)
    console.print("The file itself is not touched; models that were trained on it are not changed.", soft_wrap=True)


def _seconds(exact: str) -> float:
    numerator, _, denominator = exact.partition("/")
    return int(numerator) / int(denominator or 1)


def forgotten(outcome: Outcome, out_uri: str) -> None:
    """What was removed and how it was proved, and what cannot be taken back."""
    record, proof = outcome.record, outcome.proof
    console.print(
        f"forgotten: {sum(record.rows.values())} rows of {len(record.rows)} tables, {sum(record.mentions.values())} cells of other rows blacked out, "
        f"{record.files} files removed",
        highlight=False,
        soft_wrap=True,
    )
    shared = (
        f"; {proof.shared} cells of other files hold the same bytes: copies of it, which stay" if proof.shared else ""
    )
    console.print(
        f"proof: nothing is left in {proof.files} files ({proof.bytes / 1e6:,.1f} MB), {proof.cells:,} cells of {proof.tables} tables{shared}",
        highlight=False,
        soft_wrap=True,
    )
    for run in (run for run in record.runs if run.saw_it):
        console.print(
            f"[yellow]{run.folder} was trained on it: its checkpoints and its model cannot unlearn it[/]",
            highlight=False,
        )
    console.print(
        f"record: {escape(out_uri)}/forgotten/{record.id}.json; exports to other folders, samples and backups are yours to look after",
        highlight=False,
        soft_wrap=True,
    )


def collected(folders: Sequence[Folder], dry_run: bool) -> None:
    """What is kept, and what goes, with sizes."""
    table = Table(title="Tables", title_justify="left")
    for name in ("folder", "kept for", "files", "MB"):
        table.add_column(name, justify="right" if name in ("files", "MB") else "left", overflow="fold")
    for folder in sorted(folders, key=lambda folder: (folder.reached_by is None, -folder.size_bytes, folder.name)):
        kept_for = folder.reached_by or f"[red]{'would be removed' if dry_run else 'removed'}[/]"
        table.add_row(escape(folder.name), kept_for, str(folder.files), f"{folder.size_bytes / 1e6:,.1f}")
    console.print(table)
    gone = [folder for folder in folders if folder.reached_by is None]
    words = "would be removed" if dry_run else "removed"
    kept = sum(folder.size_bytes for folder in folders) - sum(folder.size_bytes for folder in gone)
    console.print(
        f"{len(gone)} {words}, {sum(folder.size_bytes for folder in gone) / 1e6:,.1f} MB; {kept / 1e6:,.1f} MB kept",
        highlight=False,
    )
