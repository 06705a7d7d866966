"""Evaluations on the page: scores of generated clips beside real ones, and the training clips nearest to them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cluster import storage
from pipelines.curation import Curation
from pipelines.recipe import Recipe
from pipelines.report.balance import split_distances
from pipelines.report.columns import round_significant
from pipelines.report.thumbnails import read_thumbnails
from training.data.shards import clip_uid
from training.evaluation.settings import EVALUATIONS_FOLDER, SUMMARY_FILE

MAX_EVALUATIONS = 6
MAX_NEAREST = 6
"""Generated clips, nearest to a training clip first, that are shown beside it."""
MAX_PROMPT_CHARACTERS = 300


def evaluations(recipe: Recipe, curation: Curation) -> list[dict[str, Any]]:
    """Return the newest `MAX_EVALUATIONS` evaluations under `out`, newest first.

    Metrics and distances are as in `summary.json`. `memorisation` has the ratios of all clips, and those of the
    generated clips that come nearest to a training clip, with its thumbnails.
    """
    folder = storage.join(recipe.out_uri, EVALUATIONS_FOLDER)
    summaries = storage.list_files(folder, f"/{SUMMARY_FILE}")
    newest_first = sorted(summaries, key=lambda entry: (-int(entry.version), entry.uri))
    found = []
    for entry in newest_first[:MAX_EVALUATIONS]:
        uri = entry.uri.removesuffix(f"/{SUMMARY_FILE}")
        summary = storage.read_json(entry.uri)
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
        **{name: _ratios(memorisation[name]) for name in ("generated", "held_out")},
        "nearest": [
            {
                **_generated_clip(uri, one["clip"]),
                "training": one["training"],
                "ratio": round_significant(one["ratio"]),
                "images": [base64.b64encode(image).decode() for image in images.get(clip_uid(one["training"]), [])],
            }
            for one in nearest
        ],
    }


def _ratios(found: Sequence[Mapping[str, Any]]) -> list[float | None]:
    return [round_significant(ratio) for ratio in sorted(one["ratio"] for one in found)]


def _generated_clip(uri: str, name: str) -> dict[str, str | None]:
    """Return the link of a generated clip, relative to the page and None if the file is gone, and its prompt."""
    record_uri = storage.join(uri, "generated", f"{name}.json")
    record = storage.read_json(record_uri) if storage.exists(record_uri) else {}
    link = "/".join(quote(part) for part in (EVALUATIONS_FOLDER, uri.rpartition("/")[2], "generated", f"{name}.mp4"))
    is_there = storage.exists(storage.join(uri, "generated", f"{name}.mp4"))
    return {"video": link if is_there else None, "prompt": str(record.get("prompt", ""))[:MAX_PROMPT_CHARACTERS]}
