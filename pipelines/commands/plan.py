"""`worldloom plan`: what a run would do with each segment, and why."""

from __future__ import annotations

from typing import cast

from rich.markup import escape

from cluster import storage
from pipelines.commands._console import console, table_of
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.curation import Curation, SegmentState, inspect
from pipelines.dataset.build import TextsState, inspect_texts
from pipelines.engine import tables
from pipelines.engine.reuse import find_cached_rows
from pipelines.engine.segments import Segment, segments_of
from pipelines.recipe import Recipe
from pipelines.steps.encode import BUCKET_COLUMNS, Encode

MAX_LOST_SHARE = 0.05
"""Share of clips without a bucket above which the plan warns."""


def cpu_per_row(tables_uri: str) -> dict[str, float | None]:
    """Return the CPU seconds per input row of each segment, averaged over all its tables in this `out`."""
    seconds: dict[str, float] = {}
    rows: dict[str, int] = {}
    for entry in storage.list_files(tables_uri, tables.PART_SUFFIX):
        metadata = tables.read_metadata(entry.uri)
        if "cpu_s" in metadata:
            label = cast(str, metadata["segment"])
            seconds[label] = seconds.get(label, 0.0) + cast(float, metadata["cpu_s"])
            rows[label] = rows.get(label, 0) + cast(int, metadata["n_inputs"])
    return {label: seconds[label] / rows[label] if rows[label] else None for label in seconds}


def bucket_losses(encode: Encode, curation: Curation) -> str | None:
    """Return a warning if more than `MAX_LOST_SHARE` of the clips that reach `encode` fit no bucket, with the reasons.

    It is None as well while the clips are not known.
    """
    position = next((i for i, state in enumerate(curation.segments) if state.segment.first is encode), None)
    if not position or curation.segments[position - 1].n_pending:
        return None
    clips = curation.segments[position - 1].rows.live().read(["uid", *BUCKET_COLUMNS])
    lost = encode.count_unassigned(clips)
    if lost.total() <= MAX_LOST_SHARE * len(clips):
        return None
    listed = "; ".join(f"{count} because {reason}" for reason, count in lost.most_common(3))
    rest = f"; and {len(lost) - 3} more reasons" if len(lost) > 3 else ""
    share = f"{lost.total()} of {len(clips)} clips ({lost.total() / len(clips):.1%})"
    return f"no bucket fits {share} that filters keep: {listed}{rest}. Add smaller or shorter buckets"


def print_plan(recipe: Recipe, curation: Curation, costs: dict[str, float | None], texts: TextsState | None) -> None:
    """Print the action for each segment and for text embeddings. `texts` is None while captions are not known."""
    numbers = ("rows in", "to do", "est. CPU s")
    table = table_of("Plan", ("segment", "action", "why", *numbers), numbers)
    for position, segment in enumerate(segments_of(recipe.curate, recipe.labels)):
        name = " > ".join(segment.labels)
        if position >= len(curation.segments):
            why = f"waits for the segment before it{_cached(recipe, segment)}"
            table.add_row(name, "run", why, "?", "?", "?")
            continue
        state = curation.segments[position]
        cost = costs.get(state.segment.label)
        estimate = "0" if not state.n_pending else "?" if cost is None else f"{cost * state.n_pending:.1f}"
        table.add_row(name, *_action(state), str(state.n_inputs), str(state.n_pending), estimate)
    encode = recipe.curate[-1]
    if isinstance(encode, Encode):
        table.add_row("text embeddings", *_texts_action(texts))
    console.print(table)
    if isinstance(encode, Encode) and (warning := bucket_losses(encode, curation)):
        console.print(f"[bold yellow]warning[/]  {escape(warning)}", soft_wrap=True, highlight=False)


def _action(state: SegmentState) -> tuple[str, str]:
    folder = state.folder.rpartition("/")[2]
    if not state.n_pending:
        return "reuse", f"{folder} has every row"
    if state.n_done:
        return "resume", f"{folder} has {state.n_done} of {state.n_inputs} rows"
    return "run", f"no table {folder} yet: new settings, new input, or a first run"


def _cached(recipe: Recipe, segment: Segment) -> str:
    """Return how many rows of the same settings other tables hold, for each step of a segment."""
    cached = find_cached_rows(recipe.tables_uri, segment)
    return "".join(f"; {label} has values of {len(rows.index)} rows to reuse" for label, rows in cached.items())


def _texts_action(state: TextsState | None) -> tuple[str, str, str, str, str]:
    if state is None:
        return "run", "waits for the captions", "?", "?", "?"
    if not state.n_pending:
        return "reuse", f"{state.folder} has every caption", str(state.n_captions), "0", "0"
    n_done = state.n_captions - state.n_pending
    why = f"{state.folder} has {n_done} of {state.n_captions}" if n_done else f"no {state.folder} yet"
    return "resume" if n_done else "run", why, str(state.n_captions), str(state.n_pending), "?"


def command(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Show for each segment what a run would do: reuse, resume or run, why, on how many rows, at which cost."""
    settings = read_recipe(recipe, set_)
    curation = inspect(settings)
    texts = inspect_texts(settings, curation) if isinstance(settings.curate[-1], Encode) else None
    print_plan(settings, curation, cpu_per_row(settings.tables_uri), texts)
