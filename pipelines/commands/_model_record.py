"""Collects what is known of a trained model: its card, and its training, evaluation and audit in the run's folder."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from cluster import storage
from pipelines.dataset import current
from pipelines.recipe import Recipe
from training.checkpoints.hub_metadata import public_path
from training.checkpoints.model_card import ModelCard, read_card
from training.checkpoints.readme import ModelRecord, Training
from training.data.manifest import read_manifest
from training.evaluation.settings import AUDITS_FOLDER, EVALUATIONS_FOLDER, SUMMARY_FILE
from training.tracking.metrics import read_metrics, read_settings


def model_record(
    recipe: Recipe, export_uri: str, name: str, license_: str | None = None, copy_uri: str | None = None
) -> ModelRecord:
    """Return what is known of a recipe's trained model, or of a copy of it that is given away."""
    uri = copy_uri or export_uri
    card = read_card(uri)
    digests = (card.weights, read_card(export_uri).weights)
    if card.init is not None:
        card = card.model_copy(update={"init": public_path(card.init)})
    return ModelRecord(
        name,
        card,
        _count_weights(uri, card),
        _training(recipe, export_uri),
        _summary(recipe, EVALUATIONS_FOLDER, digests),
        _summary(recipe, AUDITS_FOLDER, digests),
        dtype="float32",
        license=license_,
        unmarked=recipe.marks.missing,
    )


def _count_weights(uri: str, card: ModelCard) -> int:
    from safetensors.torch import load as load_tensors

    from training.checkpoints.initial_weights import find_initial_weights  # these import torch, which takes 2 s

    if card.adapter is None:
        return sum(math.prod(shape) for shape in find_initial_weights(uri).shapes.values())
    tensors = load_tensors(storage.read_bytes(storage.join(uri, card.files[0])))
    return sum(tensor.numel() for tensor in tensors.values())


def _summary(recipe: Recipe, folder: str, digests: tuple[str, ...]) -> dict[str, Any]:
    """Return the summary of the evaluation or audit of these weights; empty if there is none."""
    uris = [storage.join(recipe.out_uri, folder, digest, SUMMARY_FILE) for digest in digests]
    found: dict[str, Any] = next((storage.read_json(uri) for uri in uris if storage.exists(uri)), {})
    return found


def _training(recipe: Recipe, export_uri: str) -> Training | None:
    """Return the records of the run that wrote an export; None if they are gone."""
    run_uri = export_uri.rpartition("/")[0]
    settings, records = read_settings(run_uri), read_metrics(run_uri)
    if settings is None or not records:
        return None
    table, _ = read_manifest(current.read(recipe).manifest_uri)
    rows = zip(table["kind"].to_pylist(), table["split"].to_pylist(), strict=True)
    return Training(settings, records, Counter(kind for kind, split in rows if split == "train"))
