"""Lineage of the results: the recipe, the steps with their versions and weights, packages, and what the steps cost."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow.compute as pc

from pipelines.curation import Curation, SegmentState
from pipelines.engine import tables
from pipelines.engine.compaction import add_costs
from pipelines.engine.step import Step
from pipelines.recipe import Recipe, resolved
from training.data.manifest import DatasetInfo

PACKAGES = (
    "worldloom",
    "av",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "scenedetect-headless",
    "torch",
    "torchvision",
    "ray",
    "deepspeed",
    "transformers",
    "diffusers",
    "open-clip-torch",
    "onnxruntime",
    "rapidocr",
    "nudenet",
    "plotly",
)
"""Packages that results can depend on."""


def lineage(recipe: Recipe, curation: Curation, dataset: DatasetInfo | None) -> dict[str, Any]:
    """Return the resolved recipe, all segments and steps, package versions, and the identity of the data set."""
    found = {
        "recipe": resolved(recipe),
        "segments": [_segment(state) for state in curation.segments],
        "packages": package_versions(),
        "python": platform.python_version(),
    }
    if dataset is not None:
        found["dataset"] = dataset_facts(dataset)
    return found


def dataset_facts(dataset: DatasetInfo) -> dict[str, str]:
    """Return the identity of a data set, and of what encoded it."""
    return {
        "fingerprint": dataset.fingerprint,
        "autoencoder": dataset.autoencoder.get("name", ""),
        "autoencoder_identity": dataset.autoencoder_identity,
        "text_encoder": dataset.text_encoder.get("name", ""),
        "text_encoder_identity": dataset.text_encoder_identity,
    }


def _segment(state: SegmentState) -> dict[str, Any]:
    segment = state.segment
    steps = zip(segment.labels, segment.steps, segment.lineages, strict=True)
    return {
        "label": segment.label,
        "fingerprint": segment.fingerprint,
        "folder": state.folder.rpartition("/")[2],
        "rows": len(state.rows),
        "inputs": state.n_inputs,
        "steps": [_step(label, step, digest) for label, step, digest in steps],
    }


def _step(label: str, step: Step, digest: str) -> dict[str, Any]:
    return {"label": label, "version": step.version, "weights": step.weights(), "lineage": digest}


def package_versions() -> dict[str, str]:
    """Return the versions of the installed ones of `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def segment_costs(states: Sequence[SegmentState]) -> list[dict[str, Any]]:
    """Return rows, CPU seconds and wall-clock seconds of each segment and step, from the footers of the parts."""
    found = []
    for state in states:
        costs = add_costs(
            [tables.read_metadata(part) for part in sorted(pc.unique(state.rows.rows["part"]).to_pylist())]
        )
        steps = [
            {"label": label, "rows": int(rows), "cpu_s": round(step_cpu_s, 3), "wall_s": round(wall_s, 3)}
            for label, (rows, step_cpu_s, wall_s) in costs["steps"].items()
        ]
        found.append(
            {
                "label": state.segment.label,
                "labels": state.segment.labels,
                "cpu_s": round(costs["cpu_s"], 3),
                "rows": costs["n_inputs"],
                "steps": steps,
            }
        )
    return found
