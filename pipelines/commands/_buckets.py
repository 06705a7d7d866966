"""Printing of how much of the kept clips is encoded, by bucket."""

from __future__ import annotations

from rich.markup import escape

from pipelines.commands._console import console, table_of
from pipelines.curation import Curation
from pipelines.dataset.coverage import bucket_coverage


def print_buckets(curation: Curation) -> None:
    """Print the samples and used seconds of each bucket that has any, and warnings; nothing while clips are unknown."""
    found = bucket_coverage(curation)
    if found is None:
        return
    numbers = ("fps", "samples", "seconds used", "share of kept")
    table = table_of("Buckets", ("bucket", *numbers), numbers)

    def add(name: str, fps: str, n_samples: int, used_s: float, end_section: bool = False) -> None:
        share = f"{used_s / found.kept_s:.1%}" if found.kept_s else ""
        table.add_row(name, fps, f"{n_samples:,}", f"{used_s:,.1f}", share, end_section=end_section)

    used = [use for use in found.buckets if use.n_samples]
    for use in used:
        add(use.name, f"{use.fps:g}", use.n_samples, use.used_s, end_section=use is used[-1])
    add(f"all of {found.kept_s:,.1f} s kept", "", found.n_samples, found.used_s)
    console.print(table)
    for warning in found.warnings():
        console.print(f"[bold yellow]warning[/]  {escape(warning)}", soft_wrap=True, highlight=False)
