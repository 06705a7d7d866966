"""Audits of models on the page: what they have learnt by heart, with samples beside the training clips they repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster import storage
from pipelines.curation import Curation
from pipelines.recipe import Recipe
from pipelines.report.columns import round_significant
from pipelines.report.generated_clips import (
    MAX_PROMPT_CHARACTERS,
    as_base64,
    link,
    newest_summaries,
    prompt_of,
    rounded,
)
from pipelines.report.thumbnails import read_thumbnails
from training.data.shards import clip_uid
from training.evaluation.settings import AUDITS_FOLDER, TRAINING_CLIPS_FOLDER

MAX_AUDITS = 6
MAX_PAIRS = 6
"""Samples of each view, nearest to a training clip first, that are shown beside it."""
MAX_FLAGGED = 50
"""Flagged captions on the page."""


def audits(recipe: Recipe, curation: Curation) -> list[dict[str, Any]]:
    """Return the newest `MAX_AUDITS` audits of models under `out`, newest first, as `summary.json` has them.

    Each test has the values of its clips, and of its samples the ones that come nearest to a training clip.
    """
    folder = storage.join(recipe.out_uri, AUDITS_FOLDER)
    found = []
    for uri, summary in newest_summaries(folder, MAX_AUDITS):
        found.append(
            {
                "name": uri.removeprefix(folder).strip("/"),
                "model": str(summary["model"]).removeprefix(f"{recipe.out_uri}/"),
                **{key: summary[key] for key in ("rate", "clips", "seeds")},
                "n_flagged": len(summary["flagged"]),
                "flagged": [
                    one | {"caption": one["caption"][:MAX_PROMPT_CHARACTERS]}
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
        "values": rounded([one["value"] for one in findings]),
        "held_out": rounded(test["held_out"]),
        "n_flagged": sum(one["flagged"] for one in findings),
        "pairs": _pairs(uri, nearest, curation),
    }


def _pairs(uri: str, nearest: Sequence[Mapping[str, Any]], curation: Curation) -> list[dict[str, Any]]:
    """Return samples with the training clips nearest to them; thumbnails stand in for videos that are gone."""
    images = read_thumbnails(curation, [clip_uid(one["training"]) for one in nearest])
    return [
        {
            "video": link(uri, "generated", one["sample"]),
            "prompt": prompt_of(uri, one["sample"]),
            "training": one["training"],
            "training_video": link(uri, TRAINING_CLIPS_FOLDER, one["training"]),
            "ratio": round_significant(one["value"]),
            "flagged": one["flagged"],
            "images": as_base64(images.get(clip_uid(one["training"]), [])),
        }
        for one in nearest
    ]
