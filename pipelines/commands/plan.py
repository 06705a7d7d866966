"""`worldloom plan`: what a run would do with each segment, and why."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import cast

from cluster import storage
from pipelines.commands._buckets import print_buckets
from pipelines.commands._console import console, table_of
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.curation import Curation, SegmentState, inspect
from pipelines.dataset.build import TextsState, inspect_texts
from pipelines.engine import tables
from pipelines.engine.reuse import find_cached_rows
from pipelines.engine.segments import Segment, segments_of
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode


def cpu_per_row(tables_uri: str) -> dict[str, float | None]:
    """Return the CPU seconds per input row of each segment, averaged over all its tables in this `out`."""
    seconds: dict[str, float] = {}
    rows: dict[str, int] = {}
    with ThreadPoolExecutor(storage.READER_THREADS) as pool:
        footers = list(pool.map(tables.read_metadata, tables.step_parts(tables_uri)))
    for metadata in footers:
        if "cpu_s" in metadata:
            label = cast(str, metadata["segment"])
            seconds[label] = seconds.get(label, 0.0) + cast(float, metadata["cpu_s"])
            rows[label] = rows.get(label, 0) + cast(int, metadata["n_inputs"])
    return {label: seconds[label] / rows[label] if rows[label] else None for label in seconds}


def print_plan(recipe: Recipe, curation: Curation, costs: dict[str, float | None], texts: TextsState | None) -> None:
    """Print the action for each segment and for text embeddings, and how much of the clips the buckets use.

    `texts` is None while captions are not known.
    """
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
    print_buckets(curation)


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
