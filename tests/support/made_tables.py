"""A complete curation made of rows drawn from a seed, for tests of the report: real schemas, tables on disk, no video."""

from __future__ import annotations

import io
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
from pipelines.engine.segments import segments_of
from pipelines.engine.sources import SCHEMA as SOURCE_SCHEMA
from pipelines.recipe import Recipe

EVIL = '</script><script>window.hurt = 1</script><img src=x onerror="window.hurt = 2"> & <!-- <script>'
"""What a caption or a file name may hold."""

CURATE: list[dict[str, Any]] = [
    {"scan": {}},
    {"cut": {"min_s": 1.0}},
    {"keep": {"luma": {"min": 0.1, "max": 0.9}, "motion": {"min": 0.02}, "camera": {"in": ["still", "pan"]}}},
    {"dedup": {}},
    {"caption": {"engine": {"name": "signals"}}},
    {"keep": {"sharpness": {"min": 0.001}}},
]


def make_recipe(folder: Path) -> Recipe:
    sources = [{"videos": str(folder / "*.mp4")}]
    return Recipe.model_validate(
        {"name": "made <b>up</b>", "out": str(folder / "out"), "sources": sources, "curate": CURATE}
    )


@cache
def picture(tone: int) -> bytes:
    handle = io.BytesIO()
    Image.fromarray(np.full((36, 64, 3), (tone, 255 - tone, 120), np.uint8)).save(handle, "JPEG", quality=50)
    return handle.getvalue()


def make_rows(n_sources: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the last table: sources of 0 to 12 clips, every seventh an image, with each fate among them."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(n_sources):
        kind = "image" if number % 7 == 3 else "video"
        name = (
            f"a {EVIL.replace('/', '_')}.mp4" if number == 2 else f"v{number:04d}.{'jpg' if kind == 'image' else 'mp4'}"
        )
        source = {
            "source": f"/footage/{name}",
            "kind": kind,
            "size_bytes": 10,
            "version": "1",
            "fate": "kept",
            "source_uid": digest("s", str(seed), str(number)),
        }
        if number % 9 == 5:
            reason = f"DecodeError: {name}: no frame of {EVIL}" if number % 2 else "OSError: cannot be read"
            rows.append(
                {**source, "uid": source["source_uid"], "fate": "failed", "fate_step": "scan", "fate_reason": reason}
            )
            continue
        n_clips = 1 if kind == "image" else int(random.integers(0, 13))
        lengths = random.uniform(1, 9, n_clips) if kind == "video" else np.zeros(n_clips)
        media = {
            "width": 640,
            "height": 360,
            "codec": "h264",
            "time_base_num": 1,
            "time_base_den": 1000,
            "first_pts": 40,
        }
        source |= (
            {**media, "fps": 25.0, "source_duration_s": float(lengths.sum() + random.uniform(0, 3))}
            if kind == "video"
            else media
        )
        if not n_clips:
            rows.append(
                {
                    **source,
                    "uid": source["source_uid"],
                    "fate": "dropped",
                    "fate_step": "cut",
                    "fate_reason": "no shot of at least 1 s",
                }
            )
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows += [_clip(source, i, float(starts[i]), float(lengths[i]), random) for i in range(n_clips)]
    return _with_duplicates(rows)


def _clip(
    source: dict[str, Any], i: int, start_s: float, length_s: float, random: np.random.Generator
) -> dict[str, Any]:
    row: dict[str, Any] = {
        **source,
        "uid": digest(source["source_uid"], str(i)),
        "clip_index": i,
        "duration_s": length_s,
    }
    row |= {
        "start_pts": 40 + round(start_s * 1000),
        "end_pts": 40 + round((start_s + length_s) * 1000),
        "luma": float(random.beta(2, 2)),
    }
    row |= {
        "motion": float(random.lognormal(-3, 1)),
        "camera": str(random.choice(["still", "pan", "tilt"])),
        "sharpness": float(random.lognormal(-5, 1)),
    }
    if source["kind"] == "image":
        row |= {"motion": None, "camera": None}
    row["caption"] = EVIL if random.random() < 0.1 else "A grey heron stands in the shallow water of a lake."
    for step, name, low, high in (
        ("keep", "luma", 0.1, 0.9),
        ("keep", "motion", 0.02, 9.0),
        ("keep#2", "sharpness", 0.001, 9.0),
    ):
        if row[name] is not None and not low <= row[name] <= high and row["fate"] == "kept":
            bound, words = (low, "under") if row[name] < low else (high, "over")
            row |= {
                "fate": "dropped",
                "fate_step": step,
                "fate_reason": f"{name} {words} {bound:g}",
                "fate_value": row[name],
                "fate_bound": bound,
            }
    if row["camera"] == "tilt" and row["fate"] == "kept":
        row |= {"fate": "dropped", "fate_step": "keep", "fate_reason": "camera is 'tilt', not one of still, pan"}
    return row


def _with_duplicates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the kept clips, each tenth repeats the one before it."""
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
            }
            row |= {
                "duplicate_of": other["uid"],
                "duplicate_kind": "near",
                "duplicate_distance": float(i % 7),
                "duplicate_overlap": 0.75,
            }
    return rows


def make_curation(folder: Path, rows: list[dict[str, Any]], n_parts: int = 3) -> tuple[Recipe, Curation]:
    """Write the tables of cut and of the last segment in parts; the rows are dealt out in turn."""
    recipe = make_recipe(folder)
    segments = segments_of(recipe.curate, recipe.labels)
    sources = {row["source_uid"]: {**row, "uid": row["source_uid"]} for row in rows}
    states = []
    for number in (1, len(segments) - 1):
        segment = segments[number].after(f"made-{number}")
        uri = segment.folder(recipe.tables_uri)
        for part in range(n_parts):
            mine = rows[part::n_parts]
            pictures = [
                [picture((hash_of(row["uid"]) + 60 * k) % 256) for k in range(3)]
                if row.get("clip_index") is not None
                else None
                for row in mine
            ]
            table = pa.table({name: _column(mine, name) for name in sorted({name for row in mine for name in row})})
            table = table.append_column("thumbnails", pa.array(pictures, pa.list_(pa.binary())))
            about = {
                "segment": segment.label,
                "labels": segment.labels,
                "cpu_s": 2.0,
                "n_inputs": len(mine),
                "steps": {segment.labels[0]: [len(mine), 1.5, 3.0]},
            }
            tables.write_part(uri, tables.conform(table, segment.schema), about)
        states.append(SegmentState(segment, uri, len(rows), len(rows), tables.index_table(uri)))
    listed = pa.Table.from_pylist([sources[uid] for uid in sorted(sources)], SOURCE_SCHEMA)
    return recipe, Curation(listed, tuple(states), complete=True)


def hash_of(uid: str) -> int:
    return int(storage.digest(uid, size_bytes=2), 16)


def _column(rows: list[dict[str, Any]], name: str) -> pa.Array:
    kinds: dict[str, pa.DataType] = {"clip_index": pa.int32()}
    return pa.array([row.get(name) for row in rows], kinds.get(name))
