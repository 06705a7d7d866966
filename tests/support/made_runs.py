"""What training runs leave, made up: records of every step and previews, for tests of the report."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster import storage
from training.sampling.media import write_mp4


def make_records(steps: int, seed: int = 0, validate_every: int = 50) -> list[dict[str, Any]]:
    """Records as training writes them, with losses that fall and one spike in the gradient's norm."""
    chance = np.random.default_rng(seed)
    records = []
    for step in range(1, steps + 1):
        loss = 0.5 + math.exp(-step / steps * 4) + 0.02 * seed
        record = {
            "step": step,
            "loss": loss + chance.normal(0, 0.05),
            "lr": 1e-3 * min(1, step / 20),
            "grad_norm": chance.lognormal(0, 0.3),
        }
        record |= {
            "tokens_per_s": 4000 + chance.normal(0, 100),
            "mfu": 0.4 + chance.normal(0, 0.01),
            "idle_share": abs(chance.normal(0.02, 0.01)),
        }
        parts = {f"loss_time/0.{k}": loss * (1.6 - 0.1 * k) for k in range(10) if chance.random() < 0.7}
        parts |= {
            "loss_kind/image": 1.1 * loss,
            "loss_kind/video": 0.9 * loss,
            "loss_bucket/64px_1f": 1.1 * loss,
            "loss_bucket/64px_17f": 0.9 * loss,
        }
        record |= {name: value + chance.normal(0, 0.03) for name, value in parts.items()}
        if step % validate_every == 0:
            record |= {f"val_{name}": value for name, value in parts.items()} | {"val_loss": loss + 0.05}
        records.append(record)
    records[steps // 2]["grad_norm"] = 80.0
    return records


def write_run(
    out: str,
    name: str,
    records: Sequence[dict[str, Any]],
    previews: Sequence[int] = (),
    captions: Sequence[str] = ("a heron", "a lake"),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """A run's `metrics.jsonl`, and at each of the steps a preview: of one column a caption, each in a colour that the step makes lighter."""
    folder = storage.join(out, name)
    if settings:
        storage.write_bytes(storage.join(folder, "settings.json"), json.dumps(settings).encode())
    storage.write_bytes(
        storage.join(folder, "metrics.jsonl"), "".join(json.dumps(record) + "\n" for record in records).encode()
    )
    for step in previews:
        light = round(255 * step / max(previews))
        frames = np.zeros((5, 48, 80 * len(captions), 3), np.uint8)
        for column in range(len(captions)):
            frames[:, :, 80 * column : 80 * column + 78] = (light, 60 + 40 * column, 255 - light)
        uri = storage.join(folder, "previews", f"step-{step:06d}")
        handle = io.BytesIO()
        Image.fromarray(frames[0]).save(handle, "PNG")
        storage.write_bytes(f"{uri}.png", handle.getvalue())
        write_mp4(f"{uri}.mp4", frames, 8)
        about = {
            "step": step,
            "fps": 8.0,
            "frames": 5,
            "samples": [{"uid": f"u{k}", "caption": caption} for k, caption in enumerate(captions)],
        }
        storage.write_bytes(f"{uri}.json", json.dumps(about).encode())


def write_failed_preview(out: str, name: str, step: int, why: str) -> Path:
    uri = storage.join(out, name, "previews", f"step-{step:06d}.json")
    storage.write_bytes(uri, json.dumps({"step": step, "failed": why}).encode())
    return Path(uri)
