"""Training runs on the page: curves of their records, thinned to the resolution of a chart, and their previews."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from cluster import storage
from pipelines.recipe import Recipe
from pipelines.report.columns import round_significant
from pipelines.report.thumbnails import scaled_jpeg
from training.sampling.provenance import read_provenance
from training.tracking.metrics import (
    MEASURED_PREFIXES,
    METRICS_FILE,
    PREVIEWS_FOLDER,
    Points,
    Record,
    read_metrics,
    read_settings,
)
from training.tracking.trackers import flatten_settings

MAX_RUNS = 12
MAX_RAW_POINTS = 2000
MAX_MEAN_POINTS = 500
"""A mean over a fiftieth of the run shows nothing more with more points."""
RAW_METRICS = ("loss", "grad_norm")
"""Metrics with a curve of the value of each step, spikes included."""
MEAN_METRICS = ("loss", "tokens_per_s", "tflops", "mfu", "idle_share")
"""Metrics with a curve of the running mean."""
LOSS_PARTS = ("loss_time/", "loss_bucket/", "loss_kind/")
"""Prefixes of further metrics with a curve of the running mean."""

MAX_PREVIEWS = 24
POSTER_WIDTH_PX = 960
MAX_POSTER_BYTES = 4_000_000
"""Largest size of all posters together, before base64 makes them a third larger; further previews are links."""
MAX_CAPTION_CHARACTERS = 300
MAX_SETTING_CHARACTERS = 80

T = TypeVar("T")


def training_runs(recipe: Recipe) -> dict[str, Any]:
    """Return the number of runs under `out`, and curves and previews of the newest `MAX_RUNS`, newest first.

    Each run has a `label` for people, and `different_settings`: those that are not equal in all runs of its kind. A
    curve is `[steps, values]`. The curve of a `RAW_METRICS` name has the value of each step, one of `mean/<name>` the
    running mean, and those of `val_<name>` and `score_<name>` all values on the validation split and of previews.
    """
    # Not among the tables, where there may be 100,000 shards.
    folders = [storage.join(recipe.out_uri, name) for name in storage.list_folders(recipe.out_uri)]
    folders = [folder for folder in folders if folder != recipe.tables_uri]
    metrics_files = [entry for folder in folders for entry in storage.list_files(folder, f"/{METRICS_FILE}")]
    newest_first = sorted(metrics_files, key=lambda entry: (-int(entry.version), entry.uri))
    runs: list[dict[str, Any]] = []
    settings: list[Mapping[str, Any] | None] = []
    left_bytes = MAX_POSTER_BYTES
    for entry in newest_first[:MAX_RUNS]:
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
    labels = run_labels([run["name"] for run in runs], settings, [run["steps"] for run in runs])
    for run, label, different in zip(runs, labels, different_settings(settings), strict=True):
        run |= {"label": label, "different_settings": different}
    return {"n_runs": len(metrics_files), "runs": runs}


def run_labels(names: Sequence[str], settings: Sequence[Mapping[str, Any] | None], steps: Sequence[int]) -> list[str]:
    """Return labels such as `dit L, 900 steps`.

    Runs that would have the same label also get the name of their folder. A run without settings has only that name.
    """
    labels = [_label(known, done) if known else name for name, known, done in zip(names, settings, steps, strict=True)]
    return [f"{label}, {name}" if labels.count(label) > 1 else label for label, name in zip(labels, names, strict=True)]


def _label(settings: Mapping[str, Any], steps: int) -> str:
    model = settings.get("model", {"name": "autoencoder", "preset": settings.get("preset")})
    size = model.get("preset") or "x".join(str(model[key]) for key in ("depth", "dim", "heads") if key in model)
    parts = [f"{model['name']} {size}".strip(), f"{steps:,} steps"]
    return ", ".join(parts)


def different_settings(settings: Sequence[Mapping[str, Any] | None]) -> list[dict[str, str]]:
    """Return for each run the settings that are not equal in all runs of its kind: of models, or of autoencoders.

    `steps` is left out, because the page shows the number of steps anyway.
    """
    flat = [flatten_settings(known) if known else {} for known in settings]
    found = []
    for run in flat:
        same_kind = [other for other in flat if other and ("model.name" in other) == ("model.name" in run)]
        keys = dict.fromkeys(key for other in same_kind for key in other if key != "steps")
        different = [key for key in keys if len({other.get(key) for other in same_kind}) > 1]
        found.append({key: run.get(key, "–")[:MAX_SETTING_CHARACTERS] for key in different} if run else {})
    return found


def curves(records: Sequence[Record]) -> dict[str, list[list[Any]]]:
    """Return the curves `[steps, values]` of the metrics with a finite value in the records, thinned."""
    points: dict[str, Points] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append((record["step"], value))
    found = {name: downsample_min_max(points[name], MAX_RAW_POINTS) for name in RAW_METRICS if name in points}
    for name, values in points.items():
        if name == "lr" or name.startswith(MEASURED_PREFIXES):
            found[name] = downsample_strided(values, MAX_RAW_POINTS)
    for name, values in points.items():
        if name in MEAN_METRICS or name.startswith(LOSS_PARTS):
            found[f"mean/{name}"] = downsample_strided(running_mean(values), MAX_MEAN_POINTS)
    return {
        name: [[step for step, _ in line], [round_significant(value) for _, value in line]]
        for name, line in found.items()
    }


def running_mean(points: Points) -> Points:
    """Return the mean at each step over a window that ends there: a fiftieth of the run, but at least 5 steps."""
    window = max(5, len(points) // 50)
    total, result = 0.0, []
    for index, (step, loss) in enumerate(points):
        total += loss - (points[index - window][1] if index >= window else 0.0)
        result.append((step, total / min(index + 1, window)))
    return result


def downsample_strided(items: Sequence[T], max_items: int) -> list[T]:
    """Return at most `max_items` items with an equal stride between them, the last item included."""
    stride = -(-len(items) // max_items)
    return list(items[(len(items) - 1) % stride :: stride]) if items else []


def downsample_min_max(points: Points, max_points: int) -> Points:
    """Return the lowest and the highest point of each of `max_points // 2` equal intervals, so that spikes stay."""
    if len(points) <= max_points:
        return list(points)
    n = max_points // 2
    bounds = [len(points) * k // n for k in range(n + 1)]
    found: Points = []
    for start, end in itertools.pairwise(bounds):
        interval = points[start:end]
        found += sorted({min(interval, key=lambda point: point[1]), max(interval, key=lambda point: point[1])})
    return found


def previews(folder: str, name: str, left_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """Return at most `MAX_PREVIEWS` previews of a run by step, and the bytes that are left for posters.

    A preview has links to its video and image, and holds its poster if bytes are left.
    """
    uris = [entry.uri for entry in storage.list_files(storage.join(folder, PREVIEWS_FOLDER), ".json")]
    found: list[dict[str, Any]] = []
    for uri in downsample_strided(uris, MAX_PREVIEWS):
        stem = uri.removesuffix(".json")
        record = read_provenance(stem) or {}
        if "failed" in record:
            found.append({"step": record["step"], "failed": str(record["failed"])[:MAX_CAPTION_CHARACTERS]})
            continue
        link = "/".join(quote(part) for part in (*name.split("/"), PREVIEWS_FOLDER, stem.rpartition("/")[2]))
        item = {
            "step": record["step"],
            "image": f"{link}.png",
            "video": f"{link}.mp4" if record["frames"] > 1 else None,
            "captions": [str(sample["caption"])[:MAX_CAPTION_CHARACTERS] for sample in record["samples"]],
        }
        if left_bytes > 0:
            poster = poster_jpeg(f"{stem}.png")
            left_bytes -= len(poster)
            item["poster"] = base64.b64encode(poster).decode()
        found.append(item)
    return found, left_bytes


def poster_jpeg(uri: str) -> bytes:
    """Return an image as a JPEG of at most `POSTER_WIDTH_PX`; empty if it cannot be read, as after its removal."""
    try:
        return scaled_jpeg(storage.read_bytes(uri), (POSTER_WIDTH_PX, 4 * POSTER_WIDTH_PX), quality=80)
    except OSError:
        return b""
