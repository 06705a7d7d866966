"""Evaluations on the page: scores of generated clips beside real ones, and the training clips nearest to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster import storage
from pipelines.curation import Curation
from pipelines.recipe import Recipe
from pipelines.report.balance import split_distances
from pipelines.report.columns import round_significant
from pipelines.report.generated_clips import as_base64, link, newest_summaries, prompt_of, rounded
from pipelines.report.thumbnails import read_thumbnails
from training.data.shards import clip_uid
from training.evaluation.settings import EVALUATIONS_FOLDER

MAX_EVALUATIONS = 6
MAX_NEAREST = 6
"""Generated clips, nearest to a training clip first, that are shown beside it."""


def evaluations(recipe: Recipe, curation: Curation) -> list[dict[str, Any]]:
    """Return the newest `MAX_EVALUATIONS` evaluations under `out`, newest first.

    Metrics and distances are as in `summary.json`. `memorisation` has the ratios of all clips, and those of the
    generated clips that come nearest to a training clip, with its thumbnails.
    """
    folder = storage.join(recipe.out_uri, EVALUATIONS_FOLDER)
    found = []
    for uri, summary in newest_summaries(folder, MAX_EVALUATIONS):
        memorisation = summary.get("memorisation")
        found.append(
            {
                "name": uri.removeprefix(folder).strip("/"),
                "model": str(summary["model"]).removeprefix(recipe.out_uri).strip("/"),
                "metrics": [_rounded(row) for row in summary["metrics"]],
                "groups": [_group(group) for group in summary.get("groups", [])],
                "distances": _rounded(summary["distances"]) if summary.get("distances") else None,
                "memorisation": memorisation and _memorisation_json(uri, memorisation, curation),
            }
        )
    return found


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group of clips with the distance of the generated clips' distribution to that of the real ones."""
    return {**group, "distances": split_distances(group["counts"], reference="real")}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping, and those in it, with their numbers rounded."""
    return {
        key: _rounded(value)
        if isinstance(value, Mapping)
        else round_significant(value)
        if isinstance(value, float)
        else value
        for key, value in values.items()
    }


def _memorisation_json(uri: str, memorisation: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    nearest = sorted(memorisation["generated"], key=lambda one: one["ratio"])[:MAX_NEAREST]
    images = read_thumbnails(curation, [clip_uid(one["training"]) for one in nearest])
    return {
        "share_nearer": memorisation["share_nearer"],
        "threshold": round_significant(memorisation["threshold"]),
        **{name: rounded(one["ratio"] for one in memorisation[name]) for name in ("generated", "held_out")},
        "nearest": [
            {
                "video": link(uri, "generated", one["clip"]),
                "prompt": prompt_of(uri, one["clip"]),
                "training": one["training"],
                "ratio": round_significant(one["ratio"]),
                "images": as_base64(images.get(clip_uid(one["training"]), [])),
            }
            for one in nearest
        ],
    }
