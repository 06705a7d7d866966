"""A minimal recipe that ends in the step `encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.config import parse, parse_document
from pipelines.recipe import Recipe


def recipe_of(folder: Path, bucket: dict[str, Any], **settings: Any) -> Recipe:
    """Return a recipe of the MP4 files in `folder`, with these settings of its one bucket and of the encode step."""
    encode = {"buckets": [{"size": 32, "frames": [9], "fps": 8, "aspects": ["1:1"], **bucket}], **settings}
    text = {
        "name": "encode",
        "out": str(folder / "out"),
        "sources": [{"videos": str(folder / "*.mp4")}],
        "curate": [{"scan": {}}, {"cut": {"min_s": 0.5}}, {"caption": {"engine": "signals"}}, {"encode": encode}],
    }
    return parse(Recipe, parse_document(yaml.safe_dump(text), "recipe.yaml"))
