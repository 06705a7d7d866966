"""The runs trained on these results: curves of what each step recorded, thinned to what a chart can show, and its previews."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from PIL import Image

from cluster import storage
from pipelines.recipe import Recipe
from pipelines.report.columns import round_to
from training.sampling.provenance import read_provenance
from training.tracking.loss_curve import Points, running_mean
from training.tracking.metrics import METRICS_FILE, PREVIEWS_FOLDER, Record, read_metrics, read_settings
from training.tracking.trackers import flatten_settings

MAX_RUNS = 12
RAW_POINTS = 2000
MEAN_POINTS = 500
"""A mean over a fiftieth of the run says no more with more points."""
RAW = ("loss", "grad_norm")
"""Each step of these is shown, spikes too."""
MEANS = ("loss", "tokens_per_s", "tflops", "mfu", "idle_share")
PARTS = ("loss_time/", "loss_bucket/", "loss_kind/")

MAX_PREVIEWS = 24
POSTER_WIDTH = 960
POSTER_BYTES = 4_000_000
"""All posters of the page together, before base64 makes them a third larger; those of further previews are links."""
CAPTION_CHARACTERS = 300
VALUE_CHARACTERS = 80
"""Of a setting."""

T = TypeVar("T")


def training_runs(recipe: Recipe) -> dict[str, Any]:
    """How many runs there are under `out`, and curves and previews of the newest `MAX_RUNS`, newest first.

    A run is named by `label`, and `differs` has those of its settings that are not alike in all runs of its kind. A curve is `[steps, values]`.
    Those of `RAW` have what each step recorded; `mean/` before a name stands for its running mean, `val_` for values on the validation split,
    all of them.
    """
    entries = sorted(storage.list_files(recipe.out_uri, f"/{METRICS_FILE}"), key=lambda entry: (-int(entry.version), entry.uri))
    runs: list[dict[str, Any]] = []
    settings: list[Mapping[str, Any] | None] = []
    left_bytes = POSTER_BYTES
    for entry in entries[:MAX_RUNS]:
        folder = entry.uri.removesuffix(f"/{METRICS_FILE}")
        records = read_metrics(folder)
        if records:
            name = folder.removeprefix(storage.absolute(recipe.out_uri)).strip("/")
            shown, left_bytes = previews(folder, name, left_bytes)
            settings.append(read_settings(folder))
            speeds = sorted(record["tokens_per_s"] for record in records if "tokens_per_s" in record)
            runs.append(
                {
                    "name": name,
                    "steps": records[-1]["step"],
                    "tokens_per_s": speeds[len(speeds) // 2] if speeds else None,
                    "curves": curves(records),
                    "previews": shown,
                }
            )
    names = labels([run["name"] for run in runs], settings, [run["steps"] for run in runs])
    about = [{"label": label, "differs": differs} for label, differs in zip(names, differences(settings), strict=True)]
    return {"n_runs": len(entries), "runs": [run | more for run, more in zip(runs, about, strict=True)]}


def labels(names: Sequence[str], settings: Sequence[Mapping[str, Any] | None], steps: Sequence[int]) -> list[str]:
    """What runs are called: `dit L, pack, 900 steps`; with the folder's name where runs share that, and by it alone where settings are unknown."""
    found = [_label(told, done) if told else name for name, told, done in zip(names, settings, steps, strict=True)]
    return [f"{label}, {name}" if found.count(label) > 1 else label for label, name in zip(found, names, strict=True)]


def _label(settings: Mapping[str, Any], steps: int) -> str:
    model = settings.get("model", {"name": "autoencoder", "preset": settings.get("preset")})
    size = model.get("preset") or "x".join(str(model[key]) for key in ("depth", "dim", "heads") if key in model)
    parts = [f"{model['name']} {size}".strip(), settings.get("batch", {}).get("policy"), f"{steps:,} steps"]
    return ", ".join(part for part in parts if part)


def differences(settings: Sequence[Mapping[str, Any] | None]) -> list[dict[str, str]]:
    """Of each run the settings by which runs of its kind, of models or of autoencoders, differ, but for `steps`, which the page has anyway."""
    flats = [flatten_settings(told) if told else {} for told in settings]
    found = []
    for told in flats:
        alike = [other for other in flats if other and ("model.name" in other) == ("model.name" in told)]
        keys = dict.fromkeys(
            key for other in alike for key in other if key != "steps" and len({one.get(key) for one in alike}) > 1
        )
        found.append({key: told.get(key, "–")[:VALUE_CHARACTERS] for key in keys} if told else {})
    return found


def curves(records: Sequence[Record]) -> dict[str, list[list[Any]]]:
    """`[steps, values]` of each curve that the records have values of, thinned."""
    points: dict[str, Points] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((record["step"], value))
    found = {name: extremes(points[name], RAW_POINTS) for name in RAW if name in points}
    found |= {name: evenly(points[name], RAW_POINTS) for name in points if name == "lr" or name.startswith("val_")}
    found |= {
        f"mean/{name}": evenly(running_mean(points[name]), MEAN_POINTS)
        for name in points
        if name in MEANS or name.startswith(PARTS)
    }
    return {name: [[step for step, _ in line], [round_to(value) for _, value in line]] for name, line in found.items()}


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, every second, third and so on, the last one among them."""
    stride = -(-len(items) // most)
    return list(items[(len(items) - 1) % stride :: stride]) if items else []


def extremes(points: Points, most: int) -> Points:
    """At most so many of the points, of which no highest or lowest is lost: those of each of equal stretches."""
    if len(points) <= most:
        return list(points)
    n = most // 2
    bounds = [len(points) * k // n for k in range(n + 1)]
    chosen: Points = []
    for start, end in itertools.pairwise(bounds):
        stretch = points[start:end]
        chosen += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return chosen


def previews(folder: str, name: str, left_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """Previews of a run by step, `MAX_PREVIEWS` of them: links to video and poster, the poster itself while bytes are left; and what is left then."""
    uris = [entry.uri for entry in storage.list_files(storage.join(folder, PREVIEWS_FOLDER), ".json")]
    found: list[dict[str, Any]] = []
    for uri in evenly(uris, MAX_PREVIEWS):
        about = read_provenance(uri) or {}
        if "failed" in about:
            found.append({"step": about["step"], "failed": str(about["failed"])[:CAPTION_CHARACTERS]})
            continue
        stem = uri.removesuffix(".json")
        link = "/".join(quote(part) for part in (*name.split("/"), PREVIEWS_FOLDER, stem.rpartition("/")[2]))
        item = {
            "step": about["step"],
            "picture": f"{link}.png",
            "video": f"{link}.mp4" if about["frames"] > 1 else None,
        }
        item["captions"] = [str(sample["caption"])[:CAPTION_CHARACTERS] for sample in about["samples"]]
        if left_bytes > 0:
            poster = small_poster(f"{stem}.png")
            left_bytes -= len(poster)
            item["poster"] = base64.b64encode(poster).decode()
        found.append(item)
    return found, left_bytes


def small_poster(uri: str) -> bytes:
    """A JPEG of a poster, at most `POSTER_WIDTH` pixels wide; nothing where it cannot be read, as after somebody removed it."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
            image.thumbnail((POSTER_WIDTH, 4 * POSTER_WIDTH))
            handle = io.BytesIO()
            image.convert("RGB").save(handle, "JPEG", quality=80, optimize=True)
            return handle.getvalue()
    except OSError:
        return b""
