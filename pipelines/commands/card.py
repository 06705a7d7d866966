"""`worldloom card`: cards of a data set and of the model that was trained on it, to publish beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from cluster import storage
from cluster.config import ConfigError
from pipelines.commands._console import print_facts
from pipelines.commands._model_record import model_record
from pipelines.commands._options import Assignments, License, RecipeFile, read_recipe
from pipelines.commands.train import find_trained
from pipelines.curation import inspect
from pipelines.recipe import Recipe
from pipelines.report.data_card import data_card
from pipelines.report.data_card_text import data_card_text
from training.checkpoints.readme import README, model_data, model_readme

FOLDER, DATA_FOLDER, MODEL_FOLDER, FILE = "card", "dataset", "model", "card.json"


def write_cards(recipe: Recipe, folder_uri: str, license_: str | None = None) -> list[tuple[str, str]]:
    """Write the card of a recipe's data set and, if its model is trained, the model's; return (kind, URI) of each.

    Each is a `README.md` as Hugging Face shows it, beside its facts in `card.json`. A recipe of a `manifest` has no
    data set of its own, and so no card of it. Raises `ConfigError` if there is nothing to describe.
    """
    written = []
    if recipe.manifest is None:
        facts = data_card(recipe, inspect(recipe), datetime.now().astimezone())
        uri = storage.join(folder_uri, DATA_FOLDER)
        _write(uri, data_card_text(facts), facts)
        written.append(("data set", uri))
    try:
        trained = find_trained(recipe) if recipe.train is not None else None
    except ConfigError:
        if not written:
            raise
        trained = None
    if trained is not None:
        record = model_record(recipe, trained.export_uri, recipe.name, license_)
        uri = storage.join(folder_uri, MODEL_FOLDER)
        _write(uri, model_readme(record), model_data(record))
        written.append(("model", uri))
    if not written:
        raise ConfigError(f"{recipe.name}: has neither curate nor train, so there is nothing to describe")
    return written


def _write(folder_uri: str, text: str, facts: Mapping[str, Any]) -> None:
    storage.write_bytes(storage.join(folder_uri, README), text.encode())
    data = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(folder_uri, FILE), data.encode())


def command(
    recipe: RecipeFile,
    out: Annotated[str | None, typer.Option(help="Folder to write to; by default `card` in the run's folder.")] = None,
    license_: License = None,
    set_: Assignments = None,
) -> None:
    """Write the cards of a data set and of its model: Markdown as Hugging Face shows it, and JSON.

    The data set's card has its sources with their licences, what was left out and why, what is common and what is rare.
    The model's has its training, its evaluation, whether it repeats training clips, and the marks of its samples.
    """
    settings = read_recipe(recipe, set_)
    folder_uri = storage.absolute(out) if out else storage.join(settings.out_uri, FOLDER)
    print_facts([(f"card of the {kind}", uri) for kind, uri in write_cards(settings, folder_uri, license_)])
