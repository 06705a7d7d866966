"""Files of synthetic training runs, for tests of the report: records of every step, settings and previews."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cluster import storage
from training.sampling.media import write_mp4


def make_records(steps: int, seed: int = 0, validate_every: int = 50) -> list[dict[str, Any]]:
    """Return records as training writes them, with falling losses and one spike in the gradient norm."""
    rng = np.random.default_rng(seed)
    records = []
    for step in range(1, steps + 1):
        loss = 0.5 + math.exp(-step / steps * 4) + 0.02 * seed
        record = {
            "step": step,
            "loss": loss + rng.normal(0, 0.05),
            "lr": 1e-3 * min(1, step / 20),
            "grad_norm": rng.lognormal(0, 0.3),
            "tokens_per_s": 4000 + rng.normal(0, 100),
            "mfu": 0.4 + rng.normal(0, 0.01),
            "idle_share": abs(rng.normal(0.02, 0.01)),
        }
        parts = {f"loss_time/0.{k}": loss * (1.6 - 0.1 * k) for k in range(10) if rng.random() < 0.7}
        parts |= {
            "loss_kind/image": 1.1 * loss,
            "loss_kind/video": 0.9 * loss,
            "loss_bucket/64px_1f": 1.1 * loss,
            "loss_bucket/64px_17f": 0.9 * loss,
        }
        record |= {name: value + rng.normal(0, 0.03) for name, value in parts.items()}
        if step % validate_every == 0:
            record |= {f"val_{name}": value for name, value in parts.items()} | {"val_loss": loss + 0.05}
        records.append(record)
    records[steps // 2]["grad_norm"] = 80.0
    return records


def write_run(
    out_uri: str,
    name: str,
    records: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    previews: Mapping[int, Sequence[str]] | None = None,
) -> None:
    """Write `metrics.jsonl` of a run, `settings.json` if there are settings, and previews.

    `previews` holds captions by step. A preview has one column per caption, lighter at later steps.
    """
    folder = storage.join(out_uri, name)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    storage.write_bytes(storage.join(folder, "metrics.jsonl"), lines.encode())
    if settings is not None:
        storage.write_bytes(storage.join(folder, "settings.json"), json.dumps(settings).encode())
    for step, captions in (previews or {}).items():
        _write_preview(_preview_uri(out_uri, name, step), step, captions, light=round(255 * step / max(previews or {})))


def _write_preview(uri: str, step: int, captions: Sequence[str], light: int) -> None:
    frames = np.zeros((5, 48, 80 * len(captions), 3), np.uint8)
    for column in range(len(captions)):
        frames[:, :, 80 * column : 80 * column + 78] = (light, 60 + 40 * column, 255 - light)
    handle = io.BytesIO()
    Image.fromarray(frames[0]).save(handle, "PNG")
    storage.write_bytes(f"{uri}.png", handle.getvalue())
    write_mp4(f"{uri}.mp4", frames, 8)
    samples = [{"uid": f"u{k}", "caption": caption} for k, caption in enumerate(captions)]
    record = {"step": step, "fps": 8.0, "frames": 5, "samples": samples}
    storage.write_bytes(f"{uri}.json", json.dumps(record).encode())


def write_failed_preview(out_uri: str, name: str, step: int, error: str) -> None:
    """Write the record of a preview that failed."""
    uri = _preview_uri(out_uri, name, step)
    storage.write_bytes(f"{uri}.json", json.dumps({"step": step, "failed": error}).encode())


def _preview_uri(out_uri: str, name: str, step: int) -> str:
    return storage.join(out_uri, name, "previews", f"step-{step:06d}")


def write_evaluation(out_uri: str, name: str, training_uids: Sequence[str], prompt: str, n_clips: int = 24) -> None:
    """Write the summary of an evaluation, and the nearest generated clip with its record.

    Every clip in turn has one of the uids as its nearest training clip.
    """
    folder = storage.join(out_uri, "evaluation", name)
    rng = np.random.default_rng(0)

    def estimate(mean: float, spread: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - spread, "high": mean + spread, "cases": n_clips, "clips": n_clips}

    rows = [
        ("background", "", "high", None, 1.0, 0.92, 0.2),
        ("camera", "", "high", None, 0.98, 0.71, 0.3),
        ("gravity", "short sides/s²", "real", 2.4, 2.39, 1.7, None),
        ("colour_constancy", "levels of 255", "low", 0.0, 2.1, 5.4, 6.2),
    ]
    metrics = [
        {"metric": metric, "unit": unit, "better": better, "target": target}
        | {
            clip_set: estimate(mean, 0.06 * mean)
            for clip_set, mean in zip(("real", "generated", "null"), means, strict=True)
            if mean is not None
        }
        for metric, unit, better, target, *means in rows
    ]

    def nearest(ratios: Sequence[float]) -> list[dict[str, Any]]:
        return [
            {"clip": f"clip_{k:03d}", "training": f"{training_uids[k % len(training_uids)]}", "distance": 1, "ratio": r}
            for k, r in enumerate(ratios)
        ]

    memorisation = {
        "share_nearer": 0.083,
        "threshold": 0.82,
        "generated": nearest(rng.normal(0.9, 0.05, n_clips).round(3).tolist()),
        "held_out": nearest(rng.normal(0.91, 0.05, n_clips).round(3).tolist()),
    }
    colours = {"real": [30, 20, 10], "generated": [50, 9, 1]}
    summary = {
        "model": storage.join(out_uri, "run-1", "export"),
        "metrics": metrics,
        "groups": [
            {"name": "main_colour", "title": "Main colour", "labels": ["red", "green", "grey"], "counts": colours}
        ],
        "memorisation": memorisation,
    }
    storage.write_bytes(storage.join(folder, "summary.json"), json.dumps(summary).encode())
    first = min(memorisation["generated"], key=lambda one: one["ratio"])["clip"]
    write_mp4(storage.join(folder, "generated", f"{first}.mp4"), np.full((5, 56, 96, 3), 90, np.uint8), 8)
    storage.write_bytes(storage.join(folder, "generated", f"{first}.json"), json.dumps({"prompt": prompt}).encode())


def write_audit(out_uri: str, name: str, training_uids: Sequence[str], caption: str, n_clips: int = 24) -> None:
    """Write the summary of an audit that flags its first two clips, and the files of the first sample.

    Every clip in turn has one of the uids as its nearest training clip.
    """
    folder = storage.join(out_uri, "audit", name)
    rng = np.random.default_rng(0)

    def test(kind: str) -> dict[str, Any]:
        values = [0.04, 0.08, *np.sort(rng.normal(0.9, 0.05, n_clips - 2)).round(3).tolist()]
        findings: list[dict[str, Any]] = [
            {"clip": f"clip_{k:03d}", "value": one, "flagged": k < 2} for k, one in enumerate(values)
        ]
        if kind != "recall":
            for k, finding in enumerate(findings):
                finding |= {"sample": f"clip_{k:03d}-0", "training": training_uids[k % len(training_uids)]}
        return {"fewest": 2, "findings": findings, "held_out": np.sort(rng.normal(0.9, 0.05, 60)).round(3).tolist()}

    kinds = ("content", "motion", "recall")
    summary = {
        "model": storage.join(out_uri, "run-1", "export"),
        "folder": folder,
        "rate": 0.05,
        "clips": n_clips,
        "seeds": 2,
        "flagged": [{"clip": f"clip_{k:03d}", "caption": caption, "tests": list(kinds)} for k in range(2)],
        "tests": {kind: test(kind) for kind in kinds},
    }
    storage.write_bytes(storage.join(folder, "summary.json"), json.dumps(summary).encode())
    write_mp4(storage.join(folder, "generated", "clip_000-0.mp4"), np.full((5, 56, 96, 3), 90, np.uint8), 8)
    storage.write_bytes(storage.join(folder, "generated", "clip_000-0.json"), json.dumps({"prompt": caption}).encode())
    training = storage.join(folder, "training", f"{training_uids[0]}.mp4")
    write_mp4(training, np.full((5, 56, 96, 3), 90, np.uint8), 8)
