"""`worldloom verify`: load every shard as training does."""

from __future__ import annotations

import typer
from rich.markup import escape

from cluster.config import ConfigError
from pipelines.commands._console import console
from pipelines.commands._options import Assignments, RecipeFile, read_recipe
from pipelines.engine import tables
from pipelines.errors import MAKE_SHARD_AGAIN
from pipelines.recipe import Recipe
from pipelines.steps.encode import Encode


def manifests_of(recipe: Recipe) -> list[str]:
    """Return the URIs of the manifests of a recipe. Raises `ConfigError` if there is none."""
    if recipe.manifest is not None:
        return [recipe.manifest]
    if not isinstance(recipe.curate[-1], Encode):
        raise ConfigError(f"{recipe.name}: the recipe does not end in an encode step, so it has no shards to verify")
    manifests = tables.manifests(recipe.tables_uri)
    if not manifests:
        raise ConfigError(f"{recipe.tables_uri}: no manifest; run the recipe first")
    return manifests


def command(recipe: RecipeFile, set_: Assignments = None) -> None:
    """Load every shard as training does and check shapes, checksums and values. Exits 1 if anything is wrong."""
    settings = read_recipe(recipe, set_)
    manifests = manifests_of(settings)
    from training.data.verify import verify  # imports torch, which takes 2 s

    problems = [problem for uri in manifests for problem in verify(uri)]
    for problem in problems:
        console.print(f"[red]{escape(str(problem))}[/]", highlight=False, soft_wrap=True)
    console.print(f"{len(manifests)} manifest(s), {len(problems)} problem(s)")
    if settings.manifest is None and any(problem.file.startswith("latents-") for problem in problems):
        console.print(MAKE_SHARD_AGAIN, highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
