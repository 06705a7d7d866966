"""The recipe `quickstart` over footage of a test, with a model that trains in seconds."""

from __future__ import annotations

from pathlib import Path

from pipelines.recipe import Recipe, load_recipe
from tests.support.paths import ROOT

QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
TRAINING = (
    "train.model={name: dit, depth: 1, dim: 32, heads: 2}",
    "train.workers=2",
    "train.warmup_steps=2",
    "train.decay_steps=0",
    "train.checkpoint_every=2",
    "train.validate_every=0",
    "train.batch.tokens_per_step=4096",
)


def quickstart_recipe(footage: Path, out: Path, *changes: str) -> Recipe:
    """Return the recipe over a folder of videos and images, without samples; `changes` as for `--set`."""
    videos = f"{{videos: '{footage}/*.mp4', captions: sidecar}}"
    images = f"{{images: '{footage}/*.{{png,jpg}}', captions: sidecar}}"
    base = (f"out={out}", f"sources=[{videos}, {images}]", "sample=[]", "curate.dedup={method: near}")
    return load_recipe(QUICKSTART, [*base, *TRAINING, *changes])
