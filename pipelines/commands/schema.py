"""`worldloom schema`: the JSON schema of a recipe."""

from __future__ import annotations

import json

from pipelines.recipe import Recipe


def command() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(json.dumps(Recipe.model_json_schema(), indent=1))
