"""`worldloom validate`: check a recipe without starting anything."""

from __future__ import annotations

from pipelines.commands._console import print_line
from pipelines.commands._options import Assignments, RecipeFile, read_recipe


def command(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Check a recipe without starting anything."""
    settings = read_recipe(recipe, set_)
    model = f"trains {settings.train.model.name}" if settings.train else "does not train"
    print_line(f"{recipe}: ok: {len(settings.curate)} steps, {model}")
