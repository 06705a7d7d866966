"""Results of an evaluation: one JSON file per clip, by which it resumes, and the summary over all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster import plugins, storage
from training.evaluation.main_colour import main_colour
from training.evaluation.metric import FOLDER, Case, Clip, Estimate, MetricSettings, estimate
from training.evaluation.truth import World

ClipSet = Literal["real", "generated", "null"]
"""Real held-out clips, clips generated from their captions, and clips generated from no caption."""

SETS: tuple[ClipSet, ...] = ("real", "generated", "null")
NO_FORM = "shape"
"""Name of a shape whose form the tracker cannot tell."""
VERSION = 1
"""Version of what metrics measure. It goes up with every change after which a clip has other values."""


@dataclass(frozen=True)
class ClipResult:
    """The measurements of one clip."""

    clip_set: ClipSet
    name: str
    """Name of the file that the caption belongs to."""
    prompt: str
    video: str | None
    """File of the generated clip, relative to the results' folder."""
    key: str
    """Digest of everything that decides the clip and its values."""
    found: Mapping[str, Any]
    """The findings of the tracker: background, camera, colours and kinds."""
    cases: Mapping[str, tuple[Case, ...]]
    """Judgements by the name of the metric."""
    features: tuple[float, ...] = ()
    """Features of the clip, if a network for them was named."""


def all_metrics() -> list[MetricSettings]:
    """Return every metric with its default settings, sorted by name."""
    return [metric(name=name) for name, metric in plugins.classes(FOLDER, MetricSettings)]


def measure(clip: Clip, metrics: Sequence[MetricSettings]) -> dict[str, tuple[Case, ...]]:
    """Return the judgements of a clip by the name of the metric."""
    return {metric.name: tuple(metric.cases(clip)) for metric in metrics}


def found_in(clip: Clip) -> dict[str, Any]:
    """Return what a clip shows, for its JSON file: its main colour, and what the tracker found in a drawn world."""
    shown = {"main_colour": main_colour(clip.frames_THWC)}
    tracks = clip.tracks
    if tracks is None:
        return shown
    return shown | {
        "background": tracks.background,
        "camera": tracks.camera.move if tracks.camera.is_seen else None,
        "bodies": [f"{body.colour} {body.kind or NO_FORM}" for body in tracks.bodies],
    }


def result_uri(folder_uri: str, clip_set: ClipSet, name: str) -> str:
    """Return the URI of the JSON file of a clip."""
    return storage.join(folder_uri, clip_set, f"{name}.json")


def write_result(folder_uri: str, result: ClipResult) -> None:
    """Write the JSON file of a clip."""
    data = {
        "set": result.clip_set,
        "name": result.name,
        "prompt": result.prompt,
        "video": result.video,
        "key": result.key,
        "found": result.found,
        "cases": {name: [list(case) for case in cases] for name, cases in result.cases.items()},
        "features": list(result.features),
    }
    uri = result_uri(folder_uri, result.clip_set, result.name)
    storage.write_bytes(uri, (json.dumps(data, ensure_ascii=False) + "\n").encode())


def read_result(folder_uri: str, clip_set: ClipSet, name: str, key: str) -> ClipResult | None:
    """Return the result of a clip if it was measured under the same key, else None."""
    uri = result_uri(folder_uri, clip_set, name)
    if not storage.exists(uri):
        return None
    try:
        data = storage.read_json(uri)
        cases = {metric: tuple(Case(*case) for case in values) for metric, values in data["cases"].items()}
        features = tuple(data["features"])
        result = ClipResult(
            data["set"], data["name"], data["prompt"], data["video"], data["key"], data["found"], cases, features
        )
    except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or not ours: the clip is measured again
        return None
    return result if result.key == key else None


@dataclass(frozen=True)
class SummaryRow:
    """One metric over the sets of clips."""

    metric: str
    unit: str
    better: str
    target: float | None
    """True value in the drawn world."""
    estimates: Mapping[ClipSet, Estimate]


def summarise(
    results: Sequence[ClipResult], metrics: Sequence[MetricSettings], world: World | None
) -> list[SummaryRow]:
    """Return a row for each metric that judged anything."""
    rows = []
    for metric in metrics:
        estimates: dict[ClipSet, Estimate] = {}
        for clip_set in SETS:
            cases = [result.cases.get(metric.name, ()) for result in results if result.clip_set == clip_set]
            if (found := estimate(cases)) is not None:
                estimates[clip_set] = found
        if estimates:
            target = metric.target(world) if world else None
            rows.append(SummaryRow(metric.name, metric.unit, metric.better, target, estimates))
    return rows


def summary_data(rows: Sequence[SummaryRow]) -> list[dict[str, Any]]:
    """Return rows of a summary as JSON data."""
    return [
        {
            "metric": row.metric,
            "unit": row.unit,
            "better": row.better,
            "target": row.target,
            **{clip_set: found._asdict() for clip_set, found in row.estimates.items()},
        }
        for row in rows
    ]
