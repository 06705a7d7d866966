"""Audits of models on the page: what they have learnt by heart, with samples beside the training clips they repeat."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cluster import storage
from pipelines.curation import Curation
from pipelines.recipe import Recipe
from pipelines.report.columns import round_significant
from pipelines.report.thumbnails import read_thumbnails
from training.data.shards import clip_uid
from training.evaluation.settings import AUDITS_FOLDER, SUMMARY_FILE, TRAINING_CLIPS_FOLDER

MAX_AUDITS = 6
MAX_PAIRS = 6
"""Samples of each view, nearest to a training clip first, that are shown beside it."""
MAX_FLAGGED = 50
"""Flagged captions on the page."""
MAX_CAPTION_CHARACTERS = 300


def audits(recipe: Recipe, curation: Curation) -> list[dict[str, Any]]:
    """Return the newest `MAX_AUDITS` audits of models under `out`, newest first, as `summary.json` has them.

    Each test has the values of its clips, and of its samples the ones that come nearest to a training clip.
    """
    folder = storage.join(recipe.out_uri, AUDITS_FOLDER)
    summaries = storage.list_files(folder, f"/{SUMMARY_FILE}")
    newest_first = sorted(summaries, key=lambda entry: (-int(entry.version), entry.uri))
    found = []
    for entry in newest_first[:MAX_AUDITS]:
        uri, summary = entry.uri.removesuffix(f"/{SUMMARY_FILE}"), storage.read_json(entry.uri)
        found.append(
            {
                "name": uri.removeprefix(folder).strip("/"),
                "model": str(summary["model"]).removeprefix(f"{recipe.out_uri}/"),
                **{key: summary[key] for key in ("rate", "clips", "seeds")},
                "n_flagged": len(summary["flagged"]),
                "flagged": [
                    one | {"caption": one["caption"][:MAX_CAPTION_CHARACTERS]}
                    for one in summary["flagged"][:MAX_FLAGGED]
                ],
                "tests": {name: _test_json(uri, test, curation) for name, test in summary["tests"].items()},
            }
        )
    return found


def _test_json(uri: str, test: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    findings = test["findings"]
    nearest = [one for one in findings if "sample" in one][:MAX_PAIRS]
    return {
        "fewest": test["fewest"],
        "values": _rounded([one["value"] for one in findings]),
        "held_out": _rounded(test["held_out"]),
        "n_flagged": sum(one["flagged"] for one in findings),
        "pairs": _pairs(uri, nearest, curation),
    }


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [round_significant(value) for value in sorted(values)]


def _pairs(uri: str, nearest: Sequence[Mapping[str, Any]], curation: Curation) -> list[dict[str, Any]]:
    """Return samples with the training clips nearest to them; thumbnails stand in for videos that are gone."""
    images = read_thumbnails(curation, [clip_uid(one["training"]) for one in nearest])
    return [
        {
            "video": _link(uri, "generated", one["sample"]),
            "prompt": _prompt(uri, one["sample"]),
            "training": one["training"],
            "training_video": _link(uri, TRAINING_CLIPS_FOLDER, one["training"]),
            "ratio": round_significant(one["value"]),
            "flagged": one["flagged"],
            "images": [base64.b64encode(image).decode() for image in images.get(clip_uid(one["training"]), [])],
        }
        for one in nearest
    ]


def _link(uri: str, folder: str, name: str) -> str | None:
    """Return the link of a video, relative to the page; None if the file is gone."""
    if not storage.exists(storage.join(uri, folder, f"{name}.mp4")):
        return None
    return "/".join(quote(part) for part in (AUDITS_FOLDER, uri.rpartition("/")[2], folder, f"{name}.mp4"))


def _prompt(uri: str, name: str) -> str:
    record_uri = storage.join(uri, "generated", f"{name}.json")
    record = storage.read_json(record_uri) if storage.exists(record_uri) else {}
    return str(record.get("prompt", ""))[:MAX_CAPTION_CHARACTERS]
