"""The memorisation audit of a model that has learnt eight clips by heart, and of a good one on its own data set.

    python -m benchmarks.memorisation RECIPE [--model drawn-world] [--clips 64] [--seeds 2] [--steps 2000]

RECIPE is the one that the model was trained by, curated; `--model` names the model or its export. A small model is
trained for `steps` steps on eight training clips of one shape, that with the most held-out clips, and audited beside
these; its run is in `out/memorisation`. Prints JSON: by model the number of `clips`, how many are
`flagged`, by any test and by each, with the lowest value of training clips and of held-out ones (`lowest`); and
`false_alarms`, by test and over all: the share of 2,000 audits that flag a clip if held-out clips of the good model,
drawn at random, are tested beside the other ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from pipelines.commands._memorisation import audit_model
from pipelines.dataset import current
from pipelines.recipe import Recipe, load_recipe
from training.data.buckets import parse_bucket_name
from training.data.manifest import read_manifest
from training.data.manifest_writer import write_manifest
from training.evaluation.memorisation_audit import RATE
from training.evaluation.outliers import flagged
from training.models.dit import DiT
from training.run import train
from training.settings import TrainSettings

N_CLIPS = 8
N_AUDITS = 2000
FOLDER = "memorisation"


def write_small_dataset(manifest_uri: str, uri: str) -> None:
    """Write a manifest with the first `N_CLIPS` training clips of a shape, and all held-out clips of it."""
    table, info = read_manifest(manifest_uri)
    held_out = table.filter(pc.equal(table["split"], "val"))
    counts = {one["values"]: one["counts"] for one in pc.value_counts(held_out["bucket"]).to_pylist()}
    bucket = max((name for name in counts if parse_bucket_name(name)[2] > 1), key=lambda name: (counts[name], name))
    rows = table.filter(pc.equal(table["bucket"], bucket))
    # One sample of each clip.
    whole = pc.invert(pc.match_substring(rows["uid"], "."))
    chosen = rows.filter(pc.and_(pc.equal(rows["split"], "train"), whole))[:N_CLIPS]
    small = pa.concat_tables([chosen, rows.filter(pc.equal(rows["split"], "val"))])
    write_manifest(uri, small, replace(info, fingerprint=f"{info.fingerprint}-{N_CLIPS}"))


def overfit(recipe: Recipe, manifest_uri: str, out_uri: str, steps: int) -> str:
    """Train a small model on a data set until it knows the clips by heart, and return its export."""
    settings = TrainSettings(
        model=DiT(depth=4, dim=128, heads=4),
        lr=2e-3,
        warmup_steps=50,
        decay_steps=steps // 2,
        steps=steps,
        weight_decay=0.0,
        ema_decay=0.99,
        captions={} if recipe.train is None else recipe.train.captions,
        validate_every=steps,
        checkpoint_every=steps,
        workers=1,
        zero_stage=0,
        export="last",
        previews={"every": 0},  # type: ignore[arg-type]
        batch={"tokens_per_step": 1000},  # type: ignore[arg-type]
    )
    return train(settings, manifest_uri, out_uri, distributed=False).export_uri


def summary(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an audit."""
    tests = {
        name: {
            "flagged": sum(one["flagged"] for one in test["findings"]),
            "lowest": [test["findings"][0]["value"], test["held_out"][0]],
            "fewest": test["fewest"],
        }
        for name, test in data["tests"].items()
    }
    return {"clips": data["clips"], "flagged": len(data["flagged"]), **tests}


def false_alarms(held_out: Mapping[str, Sequence[float]], n_clips: int) -> dict[str, float]:
    """Return the share of audits of random held-out clips that flag one, by test and over all tests."""
    rng = np.random.default_rng(0)
    alarms: dict[str, list[bool]] = {name: [] for name in held_out}
    for _ in range(N_AUDITS):
        for name, values in held_out.items():
            shuffled = rng.permutation(np.asarray(values))
            found = flagged(shuffled[:n_clips].tolist(), shuffled[n_clips:].tolist(), RATE / len(held_out))
            alarms[name].append(bool(found.any()))
    rates = {name: float(np.mean(found)) for name, found in alarms.items()}
    return rates | {"any": float(np.mean(np.any(list(alarms.values()), axis=0)))}


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", default="drawn-world")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    good = audit_model(recipe, arguments.model, arguments.clips, arguments.seeds)
    print(json.dumps({"good": summary(good)}), flush=True)
    out_uri = storage.join(recipe.out_uri, FOLDER)
    manifest_uri = current.read(recipe).manifest_uri
    # In a folder beside that of the manifest, since both name files from there.
    tables_uri = manifest_uri.rpartition("/")[0].rpartition("/")[0]
    small_uri = storage.join(tables_uri, f"manifest-{FOLDER}", "_manifest.parquet")
    write_small_dataset(manifest_uri, small_uri)
    small = recipe.model_copy(update={"out": out_uri, "manifest": small_uri})
    overfitted = audit_model(small, overfit(recipe, small_uri, out_uri, arguments.steps), N_CLIPS, arguments.seeds)
    held_out = {name: test["held_out"] for name, test in good["tests"].items()}
    found = {"good": summary(good), "overfit": summary(overfitted)}
    print(json.dumps(found | {"false_alarms": false_alarms(held_out, arguments.clips)}))


if __name__ == "__main__":
    main()
