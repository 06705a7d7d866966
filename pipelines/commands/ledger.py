"""`worldloom ledger`: the fate of every input."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cluster.telemetry import tell
from pipelines.commands._console import print_accounts
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.curation import inspect
from pipelines.ledger import ledger


def command(
    recipe: RecipeFile,
    set_: Assignments = None,
    reasons: Annotated[int, typer.Option(min=0, help="How many reasons to list.")] = 12,
) -> None:
    """Print every input's fate. Exits 1 unless inputs = kept + dropped + failed + duplicate."""
    curation = inspect(read_recipe(recipe, set_))
    if not curation.complete:
        tell(f"curation is not complete: {curation.progress}", logging.ERROR)
        raise typer.Exit(1)
    accounts = ledger(curation)
    print_accounts(accounts, reasons)
    if not all(account.balanced for account in accounts):
        raise typer.Exit(1)
