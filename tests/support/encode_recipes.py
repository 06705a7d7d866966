"""The shortest recipe that ends in the step `encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.config import parse, parse_document
from pipelines.recipe import Recipe


def recipe_of(folder: Path, bucket: dict[str, Any], **settings: Any) -> Recipe:
    """A recipe of all the mp4 files that `folder` holds, with one setting of buckets and these further settings of the step."""
    encode = {"buckets": [{"size": 32, "frames": [9], "fps": 8, "aspects": ["1:1"], **bucket}], **settings}
    text = {
        "name": "encode",
        "out": str(folder / "out"),
        "sources": [{"videos": str(folder / "*.mp4")}],
        "curate": [{"scan": {}}, {"cut": {"min_s": 0.5}}, {"caption": {"engine": "signals"}}, {"encode": encode}],
    }
    return parse(Recipe, parse_document(yaml.safe_dump(text), "recipe.yaml"))
