"""Recipes of toy steps, files for them, and the rows that their runs end with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.curation import Curation
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Step
from pipelines.recipe import Recipe
from pipelines.steps.keep import Bound, Keep
from tests.support.toy_steps import Measure, Pick, Score, Split


def keep(**bounds: Bound) -> Keep:
    """Return a keep step with these bounds by column."""
    return Keep(name="keep", **bounds)  # type: ignore[arg-type]


def toy_recipe(folder: Path, steps: Sequence[Step] | None = None, out: str = "out") -> Recipe:
    """Return a recipe over `folder/in/*.toy`; by default with a step of every contract."""
    default = (Measure(), Split(), keep(number=Bound(max=4)), Score(), Pick())
    return Recipe(
        name="toy",
        out=str(folder / out),
        sources=(SourceSettings(videos=str(folder / "in" / "*.toy")),),
        curate=default if steps is None else tuple(steps),
        max_failed_share=1.0,
    )


def write_toys(folder: Path, names: Iterable[str]) -> None:
    """Write a file `folder/in/NAME.toy` for each name."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    for name in names:
        toy_file(folder, name).write_text(name)


def toy_file(folder: Path, name: str) -> Path:
    return folder / "in" / f"{name}.toy"


def logged_calls(path: str | Path) -> list[str]:
    """Return the lines that `log_call` of a toy step wrote to a file, empty if it was never called."""
    return Path(path).read_text().split() if Path(path).exists() else []


def final_rows(curation: Curation) -> list[dict[str, Any]]:
    """Return the rows of the last table, sorted by uid."""
    return list(curation.final.rows.read().to_pylist())
