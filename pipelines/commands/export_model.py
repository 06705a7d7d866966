"""`worldloom export-model`: a trained model as one small folder, to give away or to ship with a package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cluster import storage
from cluster.config import ConfigError
from pipelines.commands._console import print_facts
from pipelines.commands._model_record import model_record
from pipelines.commands._options import Assignments, License, read_recipe
from pipelines.commands.train import find_trained
from pipelines.recipe import Recipe
from training.checkpoints.readme import README, model_readme
from training.models.diffusers import Diffusers


def export_model(
    recipe: Recipe, folder: str, merge: bool = False, comfyui: bool = False, license_: str | None = None
) -> int:
    """Write the trained model of a recipe to a folder, which has all that sampling and `init` need.

    Of a run with `train.adapter` it is the adapter, or with `merge` the whole model. A published model is also written
    to its folder `transformer`, as diffusers loads it, and with `comfyui` as ComfyUI does. Its README has the records
    of the training and, if these weights were evaluated in the run's folder, their scores.
    Returns the size of its files in bytes. Raises `ConfigError` if no model is trained, the file of the autoencoder's
    weights is not that of the training, or ComfyUI has no such model.
    """
    from training.checkpoints.comfyui_export import write_comfyui_export
    from training.checkpoints.compact import write_compact_export  # these import torch, which takes 2 s
    from training.checkpoints.published_export import write_published_export

    uri = storage.absolute(folder)
    export_uri = find_trained(recipe).export_uri
    try:
        if comfyui:
            # First, because it refuses models and adapters that the others take.
            write_comfyui_export(export_uri, uri, merge)
        card = write_compact_export(export_uri, uri, merge)
        if isinstance(card.model, Diffusers) and card.adapter is None:
            write_published_export(uri, uri)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    name, dtype = uri.rstrip("/").rpartition("/")[2], "float32" if merge else "bfloat16"
    record = replace(model_record(recipe, export_uri, name, license_, uri), dtype=dtype)
    storage.write_bytes(storage.join(uri, README), model_readme(record).encode())
    return sum(entry.size_bytes for entry in storage.list_files(uri))


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML), or the folder of a run, whose model is trained.")],
    out: Annotated[str, typer.Option(help="Folder to write to; its last part is the model's name in its README.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base, and write the whole model in float32.")
    ] = False,
    comfyui: Annotated[
        bool, typer.Option("--comfyui", help="Also write a published model, or its adapter, as ComfyUI loads it.")
    ] = False,
    license_: License = None,
    set_: Assignments = None,
) -> None:
    """Write a trained model as one small folder to give away: averaged weights in bfloat16, autoencoder, README.

    `sample --model`, `evaluate --model` and `train: {init: ...}` take the folder.
    """
    size = export_model(read_recipe(recipe, set_), out, merge, comfyui, license_)
    print_facts([("model", storage.absolute(out)), ("size", f"{size / 1e6:.1f} MB")])
