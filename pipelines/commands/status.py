"""`worldloom status`: how far a run is, from its folder alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.commands._console import console, print_facts, print_line, table_of
from pipelines.commands._options import AsJson
from pipelines.engine.step import FATES
from pipelines.errors import FAILED
from pipelines.status import Status, StepStatus, read_status
from training.tracking.run_status import RunStatus


def print_status(status: Status) -> None:
    """Print the tables of a status, and its problems."""
    print_facts([("run", status.name or "without a recipe"), ("folder", status.uri), ("state", status.state)])
    if status.curation:
        numbers = ("done", "of", *FATES, "rows/s", "last part")
        table = table_of("Curation", ("step", *numbers), numbers)
        for step in status.curation:
            inputs = "?" if step.inputs is None else str(step.inputs)
            counts = [str(step.marked.get(fate, step.kept)) for fate in FATES]
            table.add_row(step.step, str(step.done), inputs, *counts, _number(step.rows_per_s, ",.1f"), _age(step))
        console.print(table)
        for step in status.curation:
            if step.failure is not None:
                print_line(f"failed in {step.step}, as: {step.failure}")
    if status.trainings:
        numbers = ("step", "of", "loss", "val loss", "tokens/s", "last record")
        table = table_of("Training", ("run", "state", *numbers, "checkpoints"), numbers)
        for run in status.trainings:
            values = (
                _number(run.loss, ".4f"),
                _number(run.val_loss, ".4f"),
                _number(run.tokens_per_s, ",.0f"),
                _age(run),
            )
            steps = "?" if run.steps is None else str(run.steps)
            table.add_row(run.name, run.state, str(run.step), steps, *values, ", ".join(map(str, run.checkpoints)))
        console.print(table)
    if status.leases:
        columns = ("scope", "command", "host", "process", "since", "last sign of life", "alive")
        table = table_of("Commands that write here", columns, ("process", "last sign of life"))
        for one in status.leases:
            holder, alive = one.holder, "yes" if one.alive else "no"
            cells = (holder.scope, holder.command, holder.host.partition("/")[0], str(holder.pid), holder.since)
            table.add_row(*map(escape, cells), f"{one.age_s:.0f} s ago", alive)
        console.print(table)
    if status.samples.newest is not None:
        print_line(f"{status.samples.count} samples, the newest is {status.samples.newest}")
    for problem in status.problems:
        print_line(f"problem: {problem}")


def _age(measured: StepStatus | RunStatus) -> str:
    return "" if measured.record_age_s is None else f"{measured.record_age_s:,.0f} s ago"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def command(
    out: Annotated[str, typer.Argument(help="Folder that a recipe has as `out`: a local path, s3:// or gs://.")],
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, from its folder alone: curation, training, who writes there, samples and problems.

    Works from any machine that reaches the folder, while the run writes to it, and lists no sources. Exits 1 if a file
    is damaged or a training failed, and 2 if nothing was run there.
    """
    status = read_status(out)
    if as_json:
        print(json.dumps(asdict(status), indent=1))
    else:
        print_status(status)
    if status.problems:
        raise typer.Exit(FAILED)
