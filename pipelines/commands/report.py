"""`worldloom report`: the page `out/report.html`."""

from __future__ import annotations

from cluster.telemetry import log
from pipelines.commands._console import print_line
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.curation import Curation, inspect
from pipelines.recipe import Recipe


def try_report(recipe: Recipe, curation: Curation) -> str | None:
    """Write the report and return its URI. An error is logged and None returned: it does not undo a finished run."""
    from pipelines.report.page import write_report  # the chart library is read for a report alone

    try:
        return write_report(recipe, curation).uri
    except Exception as error:  # the tables are complete, and the error is in the log
        reason = f"{type(error).__name__}: {error}"
        log.error(f"{recipe.out_uri}: the report could not be written: {reason}; `worldloom report` tries again")
        return None


def command(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Write out/report.html, one page that opens offline.

    It shows the funnel from sources to kept clips, the reason of each loss, the clips nearest to each threshold,
    duplicates, failures, balance of the splits, training, time and lineage.
    """
    from pipelines.report.page import write_report

    settings = read_recipe(recipe, set_)
    written = write_report(settings, inspect(settings))
    print_line(f"{written.uri}: {written.size_bytes / 1e6:.1f} MB in {written.seconds:.1f} s")
