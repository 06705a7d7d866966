"""`worldloom whatif`: what other thresholds would keep, from stored columns."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from pipelines.commands._console import console, table_of
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.curation import inspect
from pipelines.report.whatif import Comparison, YieldCurve, whatif

BAR_WIDTH = 40
"""Characters of the longest bar of a yield curve."""


def print_comparison(comparison: Comparison, curves: bool) -> None:
    """Print clips and hours by fate before and after, the clips whose fate changes, and yield curves."""
    console.print(f"[dim]{escape(comparison.table)}[/]", soft_wrap=True, highlight=False)
    numbers = ("now", "then", "hours now", "hours then")
    table = table_of("What if", ("clips", *numbers), numbers)
    for fate, now in comparison.before.items():
        then = comparison.after[fate]
        if now.clips or then.clips:
            table.add_row(fate, str(now.clips), str(then.clips), f"{now.hours:.3f}", f"{then.hours:.3f}")
    console.print(table)
    if comparison.changes:
        changes = table_of("Clips whose fate changes", ("now", "then", "clips"), ("clips",))
        for old, new, count in comparison.changes:
            changes.add_row(escape(old), escape(new), str(count))
        console.print(changes)
    for curve in comparison.curves if curves else ():
        _print_curve(curve)


def _print_curve(curve: YieldCurve) -> None:
    largest = max(kept.clips for _, kept in curve.points) or 1
    numbers = (curve.side, "clips", "hours")
    table = table_of(f"{curve.label}: {curve.column} {curve.side}", (*numbers, ""), numbers)
    for threshold, kept in curve.points:
        style = "[bold]" if threshold == curve.current else ""
        bar = "█" * round(BAR_WIDTH * kept.clips / largest)
        table.add_row(f"{style}{threshold:.4g}", str(kept.clips), f"{kept.hours:.3f}", bar)
    console.print(table)


def command(
    recipe: RecipeFile,
    set_: Assignments = None,
    curves: Annotated[bool, typer.Option(help="Also show the yield of other thresholds on the same columns.")] = True,
) -> None:
    """Show what other thresholds would keep and lose, without running anything: --set curate.keep.motion.min=0.02."""
    before = read_recipe(recipe, None)
    print_comparison(whatif(inspect(before), before, read_recipe(recipe, set_)), curves)
