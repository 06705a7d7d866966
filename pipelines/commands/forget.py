"""`worldloom forget`: remove a source or a clip from everything under `out`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from pipelines.commands._console import console, print_line, table_of
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.forgetting.removal_list import RemovalList
from pipelines.forgetting.request import Outcome, forget


def print_removal_list(removal: RemovalList) -> None:
    """Print what a request is about to remove."""
    console.print(f"[bold]forget[/] {escape(removal.uri)}{_span(removal)}", highlight=False, soft_wrap=True)
    table = table_of("", ("table", "rows"), ("rows",))
    for name, count in removal.row_counts.items():
        table.add_row(name, str(count))
    if removal.row_counts:
        console.print(table)
    print_line("The file itself is not touched; models that were trained on it are not changed.")


def _span(removal: RemovalList) -> str:
    if removal.span is None:
        return ""
    return f", {float(removal.span.start_s):.3f} s to {float(removal.span.end_s):.3f} s"


def print_outcome(outcome: Outcome, out_uri: str) -> None:
    """Print what was removed, how that was proved, and what cannot be undone."""
    record, proof = outcome.record, outcome.proof
    print_line(
        f"forgotten: {sum(record.removed_rows.values())} rows of {len(record.removed_rows)} tables, "
        f"{sum(record.redacted_cells.values())} cells of other rows blanked, {record.removed_files} files removed"
    )
    copies = (
        f"; {proof.shared} cells of other files hold the same bytes (copies of it) and stay" if proof.shared else ""
    )
    print_line(
        f"proof: no trace in {proof.files} files ({proof.bytes / 1e6:,.1f} MB), "
        f"{proof.cells:,} cells of {proof.tables} tables{copies}"
    )
    for run in (run for run in record.runs if run.trained_on_it):
        text = f"{run.folder} was trained on it: its checkpoints and its model cannot unlearn it"
        console.print(f"[yellow]{escape(text)}[/]", highlight=False)
    print_line(
        f"record: {out_uri}/forgotten/{record.id}.json; exports to other folders, samples and backups are not searched"
    )


def command(
    recipe: RecipeFile,
    set_: Assignments = None,
    source: Annotated[str | None, typer.Option(help="URI or path of a source file.")] = None,
    uid: Annotated[
        str | None, typer.Option(help="uid of a source file, or of a clip: then its span of the file.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove a source or a clip from every table, shard, manifest and export under `out`, and from later runs.

    The removal is proved by reading every file. The source file itself stays, and models that were trained on it stay
    as they are. With neither --source nor --uid, an interrupted removal is finished.
    """
    settings = read_recipe(recipe, set_)

    def confirm(removal: RemovalList) -> bool:
        print_removal_list(removal)
        return yes or typer.confirm("Remove it for good?")

    outcome = forget(settings, source, uid, confirm)
    if outcome is None:
        raise typer.Exit(1)
    print_outcome(outcome, settings.out_uri)
