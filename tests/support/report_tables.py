"""A complete curation of synthetic rows, for tests of the report: real schemas and tables on disk, no video."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster import storage
from cluster.storage import digest
from pipelines.curation import Curation, SegmentState
from pipelines.engine import tables
from pipelines.engine.segments import Segment, segments_of
from pipelines.engine.sources import SCHEMA as SOURCE_SCHEMA
from pipelines.engine.table_index import index_table
from pipelines.recipe import Recipe

HOSTILE_TEXT = '</script><script>window.injected = 1</script><img src=x onerror="window.injected = 2"> & <!-- <script>'
"""A caption or file name that would run as script if it became markup. Each script sets `window.injected`."""

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
"""Time of the reports of tests."""

CURATE: list[dict[str, Any]] = [
    {"scan": {}},
    {"cut": {"min_s": 1.0}},
    {"keep": {"luma": {"min": 0.1, "max": 0.9}, "motion": {"min": 0.02}, "camera": {"in": ["still", "pan"]}}},
    {"dedup": {}},
    {"caption": {"engine": {"name": "signals"}}},
    {"keep": {"sharpness": {"min": 0.001}}},
]

THRESHOLDS = (
    ("keep", "luma", 0.1, 0.9),
    ("keep", "motion", 0.02, 9.0),
    ("keep#2", "sharpness", 0.001, 9.0),
)
"""Label, column, minimum and maximum of the numeric bounds of `CURATE`; no value exceeds a maximum of 9."""


def make_recipe(folder: Path) -> Recipe:
    """Return a recipe with the steps of `CURATE` and the output folder `out`; its name holds markup."""
    sources = [{"videos": str(folder / "*.mp4")}]
    return Recipe.model_validate(
        {"name": "synthetic <b>run</b>", "out": str(folder / "out"), "sources": sources, "curate": CURATE}
    )


@cache
def jpeg(tone: int) -> bytes:
    """Return a JPEG of 64x36 in one colour that follows from `tone`, 0 to 255."""
    handle = io.BytesIO()
    Image.fromarray(np.full((36, 64, 3), (tone, 255 - tone, 120), np.uint8)).save(handle, "JPEG", quality=50)
    return handle.getvalue()


def make_rows(n_sources: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of the last table. Every seventh source is an image, and videos have 0 to 12 clips.

    All fates occur, and captions, file names and errors with `HOSTILE_TEXT`.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(n_sources):
        is_image = number % 7 == 3
        hostile = f"a {HOSTILE_TEXT.replace('/', '_')}.mp4"
        name = hostile if number == 2 else f"v{number:04d}.{'jpg' if is_image else 'mp4'}"
        source: dict[str, Any] = {
            "source": f"/footage/{name}",
            "kind": "image" if is_image else "video",
            "size_bytes": 10,
            "version": "1",
            "fate": "kept",
            "source_uid": digest("s", str(seed), str(number)),
        }
        if number % 9 == 5:
            error = f"DecodeError: {name}: no frame of {HOSTILE_TEXT}" if number % 2 else "OSError: cannot be read"
            rows.append(_without_clips(source, "failed", "scan", error))
            continue
        n_clips = 1 if is_image else int(rng.integers(0, 13))
        durations_s = np.zeros(n_clips) if is_image else rng.uniform(1, 9, n_clips)
        source |= {
            "width": 640,
            "height": 360,
            "codec": "h264",
            "time_base_num": 1,
            "time_base_den": 1000,
            "first_pts": 40,
        }
        if not is_image:
            source |= {"fps": 25.0, "source_duration_s": float(durations_s.sum() + rng.uniform(0, 3))}
        if not n_clips:
            rows.append(_without_clips(source, "dropped", "cut", "no shot of at least 1 s"))
        starts_s = np.concatenate([[0], np.cumsum(durations_s)])
        rows += [_clip(source, i, float(starts_s[i]), float(durations_s[i]), rng) for i in range(n_clips)]
    _mark_duplicates(rows)
    return rows


def _without_clips(source: dict[str, Any], fate: str, step: str, reason: str) -> dict[str, Any]:
    return {**source, "uid": source["source_uid"], "fate": fate, "fate_step": step, "fate_reason": reason}


def _clip(
    source: dict[str, Any], i: int, start_s: float, duration_s: float, rng: np.random.Generator
) -> dict[str, Any]:
    row: dict[str, Any] = {
        **source,
        "uid": digest(source["source_uid"], str(i)),
        "clip_index": i,
        "duration_s": duration_s,
        "start_pts": 40 + round(start_s * 1000),
        "end_pts": 40 + round((start_s + duration_s) * 1000),
        "luma": float(rng.beta(2, 2)),
        "motion": float(rng.lognormal(-3, 1)),
        "camera": str(rng.choice(["still", "pan", "tilt"])),
        "sharpness": float(rng.lognormal(-5, 1)),
    }
    if source["kind"] == "image":
        row |= {"motion": None, "camera": None}
    row["caption"] = HOSTILE_TEXT if rng.random() < 0.1 else "A grey heron stands in the shallow water of a lake."
    for step, name, low, high in THRESHOLDS:
        value = row[name]
        if value is not None and not low <= value <= high and row["fate"] == "kept":
            bound, words = (low, "under") if value < low else (high, "over")
            row |= {"fate": "dropped", "fate_step": step, "fate_reason": f"{name} {words} {bound:g}"}
            row |= {"fate_value": value, "fate_bound": bound}
    if row["camera"] == "tilt" and row["fate"] == "kept":
        row |= {"fate": "dropped", "fate_step": "keep", "fate_reason": "camera is 'tilt', not one of still, pan"}
    return row


def clips_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that are clips."""
    return [row for row in rows if "clip_index" in row]


def _mark_duplicates(rows: list[dict[str, Any]]) -> None:
    """Give kept clips a cluster, and mark every tenth one as a duplicate of the kept clip before it."""
    kept = [row for row in rows if row["fate"] == "kept"]
    for i, row in enumerate(kept):
        row["cluster"] = row["uid"]
        if i % 10 == 9:
            other = kept[i - 1]
            row |= {
                "fate": "duplicate",
                "fate_step": "dedup",
                "fate_reason": f"near-duplicate of a clip of {other['source']}",
                "cluster": other["uid"],
                "duplicate_of": other["uid"],
                "duplicate_kind": "near",
                "duplicate_distance": float(i % 7),
                "duplicate_overlap": 0.75,
            }


def make_curation(folder: Path, rows: list[dict[str, Any]], n_parts: int = 3) -> tuple[Recipe, Curation]:
    """Write the tables of `cut` and of the last segment, each in `n_parts` parts with the rows of every n-th source."""
    recipe = make_recipe(folder)
    segments = segments_of(recipe.curate, recipe.labels)
    source_uids = list(dict.fromkeys(row["source_uid"] for row in rows))
    states = []
    for number in (1, len(segments) - 1):
        segment = segments[number].after(f"made-{number}")
        uri = segment.folder(recipe.tables_uri)
        for part in range(n_parts):
            of_part = set(source_uids[part::n_parts])
            if in_part := [row for row in rows if row["source_uid"] in of_part]:
                _write_part(segment, uri, in_part)
        states.append(SegmentState(segment, uri, len(rows), len(rows), index_table(uri, segment.input_column)))
    sources = {row["source_uid"]: {**row, "uid": row["source_uid"]} for row in rows}
    listed = pa.Table.from_pylist([sources[uid] for uid in sorted(sources)], SOURCE_SCHEMA)
    return recipe, Curation(listed, tuple(states), complete=True)


def _write_part(segment: Segment, uri: str, rows: list[dict[str, Any]]) -> None:
    thumbnails = [_thumbnails(row["uid"]) if row.get("clip_index") is not None else None for row in rows]
    table = pa.table({name: _column(rows, name) for name in sorted({name for row in rows for name in row})})
    table = table.append_column("thumbnails", pa.array(thumbnails, pa.list_(pa.binary())))
    metadata = {
        "segment": segment.label,
        "labels": segment.labels,
        "cpu_s": 2.0,
        "n_inputs": len(rows),
        "steps": {segment.labels[0]: [len(rows), 1.5, 3.0]},
    }
    tables.write_part(uri, tables.conform(table, segment.schema), metadata)


def _thumbnails(uid: str) -> list[bytes]:
    tone = int(storage.digest(uid, size_bytes=2), 16)
    return [jpeg((tone + 60 * k) % 256) for k in range(3)]


def _column(rows: list[dict[str, Any]], name: str) -> pa.Array:
    return pa.array([row.get(name) for row in rows], pa.int32() if name == "clip_index" else None)
