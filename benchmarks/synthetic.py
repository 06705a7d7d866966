"""Write a complete curation of synthetic footage, for benchmarks of tables without pixels (whatif, report, splits).

    python -m benchmarks.synthetic OUT [--clips 10000] [--seed 0]

The table of `scan` is random: shots, signals, hashes over time, captions, and thumbnails from a pool of small images.
Some sources are copies of others, smaller and with bits of their hashes flipped, and some failed. All later tables are
written by the real steps, so they have the columns, fates and fingerprints of a real curation. The source files exist
and are empty. The distributions are plausible but not fitted to footage. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from cluster import storage
from cluster.arrays import Float64Array, Int64Array, UInt64Array
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine import tables
from pipelines.engine.segments import footer, segments_of
from pipelines.engine.sources import list_sources
from pipelines.engine.step import FATE_COLUMNS, Mark
from pipelines.recipe import load_recipe
from pipelines.steps.scan import SHOTS

RECIPE = """\
name: synthetic
out: {out}
sources:
  - videos: "{folder}/footage/*.mp4"
  - images: "{folder}/photos/*.jpg"
curate:
  - scan: {{}}
  - cut: {{min_s: 1.0, max_s: 10.0}}
  - keep:
      luma: {{min: 0.08, max: 0.92}}
      sharpness: {{min: 0.0005}}
      motion: {{min: 0.003}}
      frozen_share: {{max: 0.5}}
  - dedup: {{}}
  - caption: {{engine: signals}}
  - keep:
      noise: {{max: 4.0}}
      flicker: {{max: 0.02}}
      camera: {{in: [still, pan, tilt, zoom, handheld]}}
"""
SOURCES_PER_PART = 128
N_THUMBNAILS = 50
TICKS = 90_000
"""Ticks per second of the time base of every video."""
HASH_EVERY = TICKS // 4
FRAME_TICKS = TICKS // 25
"""Ticks from frame to frame."""
SIZES = ((1920, 1080), (1280, 720), (3840, 2160), (854, 480), (640, 480), (1080, 1920), (720, 1280), (1440, 1080))
SIZE_SHARES = (0.34, 0.2, 0.08, 0.1, 0.08, 0.1, 0.06, 0.04)
RATES = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60000 / 1001)
CAMERAS = ("still", "pan", "tilt", "zoom", "handheld", "cut-in")
CAMERA_SHARES = (0.42, 0.14, 0.07, 0.1, 0.25, 0.02)
FAILURES = (
    "DecodeError: {source}: moov atom not found",
    "DecodeError: {source}: no video stream",
    "WorkerDied: the worker died each time it took this row: out of memory",
)
SUBJECTS = (
    "A woman",
    "An old man",
    "Two children",
    "A brown dog",
    "A red tram",
    "A crowd",
    "A cook",
    "A cyclist",
    "A small boat",
    "A football team",
)
VERBS = (
    "walks along",
    "waits beside",
    "turns around in",
    "crosses",
    "looks over",
    "runs through",
    "rests near",
    "comes out of",
    "passes",
)
PLACES = (
    "a narrow street",
    "the harbour at dusk",
    "a snowy field",
    "an open kitchen",
    "a concert hall",
    "a rocky beach",
    "the old bridge",
    "a forest path",
)
REFUSED = "I'm sorry, I can't describe this video."
LOOPING = "the man and the man and the man and the man and the man and the man and the man and the man and"


@dataclass(frozen=True)
class Video:
    """The durations of S shots of a source, and its hashes: shot i has those from `firsts_S[i]` on."""

    seconds_S: Float64Array
    hashes_H: UInt64Array
    firsts_S: Int64Array


@contextlib.contextmanager
def curation_for(n_clips: int, folder: Path | None = None) -> Iterator[Path]:
    """Yield the recipe of a synthetic curation in a folder, which is written if there is none yet.

    Without a folder it is in a temporary one, which is removed at the end.
    """
    with tempfile.TemporaryDirectory() as temporary:
        recipe = (folder or Path(temporary)) / "recipe.yaml"
        if not recipe.exists():
            start_s = time.monotonic()
            write_run(recipe.parent, n_clips)
            print(f"wrote a curation of {n_clips} clips in {time.monotonic() - start_s:.1f} s")
        yield recipe


def write_run(out_folder: str | Path, n_clips: int, seed: int = 0) -> Path:
    """Write sources, recipe and tables of about `n_clips` clips below a folder. Return the path of the recipe."""
    folder = Path(out_folder).absolute()
    rng = np.random.default_rng(seed)
    n_images = n_clips // 50
    counts = _clip_counts(n_clips - n_images, rng)
    n_without = max(len(FAILURES) + 1, len(counts) // 25)
    names = [f"footage/v{i:06d}.mp4" for i in range(len(counts) + n_without)] + [
        f"photos/p{i:06d}.jpg" for i in range(max(1, n_images))
    ]
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1_600_000_000 + i, 1_600_000_000 + i))
    recipe_path = folder / "recipe.yaml"
    recipe_path.write_text(RECIPE.format(out=json.dumps(str(folder / "out")), folder=folder))
    recipe = load_recipe(recipe_path)
    first = segments_of(recipe.curate, recipe.labels)[0].after("")
    sources = list_sources(recipe.sources)
    kinds = ["image" if kind == "image" else "video" for kind in sources["kind"].to_pylist()]
    # Sources without clips are spread over the list: failures of each class, and files of too short shots.
    without = set(rng.choice(len(counts) + n_without, n_without, replace=False).tolist())
    remaining = iter(counts)
    wanted = [1 if kind == "image" else 0 if i in without else next(remaining) for i, kind in enumerate(kinds)]
    draw = _Draw(rng, thumbnails(rng))
    for start in range(0, len(sources), SOURCES_PER_PART):
        part = sources.slice(start, SOURCES_PER_PART)
        table = draw.scan_rows(part, wanted[start : start + SOURCES_PER_PART])
        metadata = {**footer(first), "cpu_s": 0.9 * len(part), "n_inputs": len(part)}
        tables.write_part(first.folder(recipe.tables_uri), tables.conform(table, first.schema), metadata)
    run_segments(recipe, inline)
    return recipe_path


def _clip_counts(n_clips: int, rng: np.random.Generator) -> list[int]:
    """Return the number of clips of each source, 10 to 40, with the sum `n_clips`."""
    counts: list[int] = []
    while n_clips > 0:
        counts.append(min(n_clips, int(rng.integers(10, 41))))
        n_clips -= counts[-1]
    return counts


def thumbnails(rng: np.random.Generator) -> list[bytes]:
    """Return different small JPEG images: a horizon, a sun and grain."""
    found = []
    y, x = np.mgrid[0:72, 0:128]
    for _ in range(N_THUMBNAILS):
        sky, ground, sun = rng.uniform(0, 255, (3, 3))
        horizon, cx, cy, radius = (
            rng.uniform(20, 60),
            rng.uniform(0, 128),
            rng.uniform(0, 72),
            rng.uniform(5, 25),
        )
        image = np.where((y < horizon)[..., None], sky, ground) * (0.7 + 0.3 * y / 72)[..., None]
        image = np.where(((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[..., None], sun, image) + rng.normal(
            0, 4, (72, 128, 1)
        )
        handle = io.BytesIO()
        Image.fromarray(cv2.GaussianBlur(image.clip(0, 255).astype(np.uint8), (3, 3), 0)).save(
            handle, "JPEG", quality=60
        )
        found.append(handle.getvalue())
    return found


class _Draw:
    """A generator of rows as `scan` writes them."""

    def __init__(self, rng: np.random.Generator, pool: Sequence[bytes]) -> None:
        self._rng = rng
        self._pool = pa.array(pool, pa.binary())
        self._made: list[tuple[Video, str]] = []
        self._n_without = 0

    def scan_rows(self, sources: pa.Table, counts: Sequence[int]) -> pa.Table:
        """Return a row per source, with shots that give `counts` clips."""
        rows = sources.to_pylist()
        shots: list[pa.Array] = []
        for row, count in zip(rows, counts, strict=True):
            columns, table = self._image(row) if row["kind"] == "image" else self._video(row, count)
            row.update({**dict.fromkeys(FATE_COLUMNS), "fate": "kept", **columns})
            shots.append(table)
        lengths = [len(table) if table is not None else 0 for table in shots]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        held = [table for table in shots if table is not None]
        values = pa.concat_arrays(held) if held else pa.array([], SHOTS.type.value_type)
        masked = pa.array([table is None for table in shots])
        names = sorted({name for row in rows for name in row} - {"boundaries"})
        table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
        return table.append_column("shots", pa.ListArray.from_arrays(offsets, values, SHOTS.type, mask=masked))

    def _video(self, row: Mapping[str, Any], count: int) -> tuple[dict[str, Any], pa.Array | None]:
        rng = self._rng
        if count == 0:
            self._n_without += 1
            kind = self._n_without % (len(FAILURES) + 1)
            if kind:
                mark = Mark("failed", FAILURES[kind - 1].format(source=row["source"]))
                return {"fate": mark.fate, "fate_step": "scan", "fate_reason": mark.reason}, None
        copied = (
            self._made[int(rng.integers(len(self._made)))] if count and self._made and rng.random() < 0.08 else None
        )
        remuxed = copied is not None and rng.random() < 0.25
        video = self._copy(copied[0], count, remuxed) if copied else self._new(count)
        content = copied[1] if copied and remuxed else storage.digest(row["uid"], "content", size_bytes=16)
        if count:
            self._made.append((video, content))
        width, height = SIZES[int(rng.choice(len(SIZES), p=SIZE_SHARES))] if copied is None else SIZES[3]
        edges = np.concatenate([[0], np.cumsum(np.round(video.seconds_S * TICKS).astype(np.int64))])
        media = {
            **_media("h264" if rng.random() < 0.8 else "hevc", width, height, TICKS),
            "fps": float(rng.choice(RATES)),
            "source_duration_s": float(edges[-1] / TICKS),
            "content_hash": content,
            "timed_captions": [
                {"start_s": float(a), "end_s": float(b), "caption": self._words()}
                for a, b in zip(edges[:-1] / TICKS, edges[1:] / TICKS, strict=True)
            ],
        }
        return media, self._shots(video, edges, width, height, still=False)

    def _image(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], pa.Array]:
        width, height = (1600, 1200) if self._rng.random() < 0.7 else (1200, 1600)
        video = self._new(1)
        video = Video(video.seconds_S, video.hashes_H[:1], np.array([0, 1]))
        media = {
            **_media("mjpeg", width, height, 1),
            "source_duration_s": 0.0,
            "content_hash": storage.digest(row["uid"], "content", size_bytes=16),
        }
        return {**media, "source_caption": self._words()}, self._shots(
            video, np.array([0, 1]), width, height, still=True
        )

    def _words(self) -> str | None:
        rng = self._rng
        drawn = rng.random()
        if drawn < 0.01:
            return REFUSED if drawn < 0.006 else LOOPING
        return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(PLACES)}." if drawn < 0.9 else None

    def _new(self, count: int) -> Video:
        """Return shots of 1.2 to 10 s, each of which gives one clip, and some that are too short for a clip."""
        rng = self._rng
        seconds = np.clip(rng.lognormal(1.2, 0.6, count), 1.2, 9.9)
        seconds = np.concatenate([seconds, rng.uniform(0.2, 0.9, count // 8 + (count == 0))])
        rng.shuffle(seconds)
        lengths = np.ceil(seconds * TICKS / HASH_EVERY).astype(np.int64) + 1
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        # Within a shot two of 64 bits change from one hash to the next; each shot starts with a new hash.
        steps = np.bitwise_and.reduce(_bits(rng, 5, int(firsts[-1])))
        steps[firsts[:-1]] = _bits(rng, 1, len(lengths))[0]
        return Video(seconds, np.bitwise_xor.accumulate(steps), firsts)

    def _copy(self, video: Video, count: int, whole: bool) -> Video:
        """Return the same video, or its first shots with 1 of 64 hash bits flipped and new shots after them.

        The result has `count` clips.
        """
        if whole:
            return video
        n_taken = min(int(np.searchsorted(np.cumsum(video.seconds_S > 1), count)) + 1, len(video.seconds_S))
        firsts, seconds = video.firsts_S[: n_taken + 1], video.seconds_S[:n_taken]
        hashes = video.hashes_H[: firsts[-1]] ^ np.bitwise_and.reduce(_bits(self._rng, 6, int(firsts[-1])))
        new = self._new(count - int((seconds > 1).sum()))
        joined = np.concatenate([firsts, firsts[-1] + new.firsts_S[1:]])
        return Video(np.concatenate([seconds, new.seconds_S]), np.concatenate([hashes, new.hashes_H]), joined)

    def _shots(self, video: Video, edges: Int64Array, width: int, height: int, still: bool) -> pa.Array:
        rng, n = self._rng, len(edges) - 1
        columns = series(rng, edges, width, height, still)
        transition_in = pa.array([None] + ["cut" if u < 0.93 else "dissolve" for u in rng.random(n - 1)], pa.string())
        columns |= {"start_pts": pa.array(edges[:-1]), "end_pts": pa.array(edges[1:]), "transition_in": transition_in}
        columns["transition_out"] = pa.concat_arrays([transition_in.slice(1), pa.nulls(1, pa.string())])
        # At least one grid point inside each shot. A copy that lacks hashes at the end of a shot repeats the last one.
        first, last = (
            -(-edges[:-1] // HASH_EVERY),
            np.maximum(-(-edges[:-1] // HASH_EVERY) + 1, -(-edges[1:] // HASH_EVERY)),
        )
        counts = last - first
        shot = np.repeat(np.arange(n), counts)
        number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        row = np.minimum(video.firsts_S[shot] + number, video.firsts_S[shot + 1] - 1)
        pts = np.minimum((first[shot] + number) * HASH_EVERY, edges[1:][shot] - 1)
        field = SHOTS.type.value_type.field("hashes")
        hashes = pa.StructArray.from_arrays(
            [pa.array(pts), pa.array(video.hashes_H[row])], fields=list(field.type.value_type)
        )
        columns["hashes"] = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), hashes, field.type
        )
        per_shot = 1 if still else 3
        drawn = self._pool.take(pa.array(rng.integers(0, len(self._pool), n * per_shot)))
        times = (edges[:-1, None] + np.diff(edges)[:, None] * np.arange(per_shot) // per_shot).ravel()
        images = SHOTS.type.value_type.field("thumbnails").type
        columns["thumbnails"] = pa.ListArray.from_arrays(
            pa.array(np.arange(n + 1) * per_shot, pa.int32()),
            pa.StructArray.from_arrays([pa.array(times), drawn.cast(pa.binary())], fields=list(images.value_type)),
            images,
        )
        fields = list(SHOTS.type.value_type)
        arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in fields]
        return pa.StructArray.from_arrays(arrays, fields=fields)


def _bits(rng: np.random.Generator, k: int, n: int) -> UInt64Array:
    return rng.integers(0, 2**64, (k, n), np.uint64, endpoint=False)


def _media(codec: str, width: int, height: int, ticks: int) -> dict[str, Any]:
    media = {
        "codec": codec,
        "width": width,
        "height": height,
        "rotation_deg": 0,
        "mirrored": False,
        "time_base_num": 1,
        "time_base_den": ticks,
        "first_pts": 0,
    }
    return {**media, "pixel_format": "yuv420p", "bit_depth": 8, "interlaced": False}


def series(rng: np.random.Generator, edges: Int64Array, width: int, height: int, still: bool) -> dict[str, pa.Array]:
    """Return crops and measurements of the shots between edges, of which the thresholds of `RECIPE` drop a fifth.

    Each shot has five frames, two motions and a sample, from which `cut` computes the signals that were drawn.
    """
    n = len(edges) - 1
    boxed = rng.random(n) < 0.08
    bar = np.where(boxed, height // 8, 0)
    crop = np.stack([np.zeros(n, np.int64), bar, np.full(n, width), height - bar], 1)
    motion = rng.lognormal(-3.7, 1.1, n)
    frozen = np.where(rng.random(n) < 0.85, 0.0, rng.uniform(0, 1, n))
    statistics = {
        "luma": rng.beta(3.5, 4.5, n),
        "contrast": 0.5 * rng.beta(4, 5, n),
        "clipped_black": rng.beta(0.6, 12, n),
        "clipped_white": rng.beta(0.5, 20, n),
        "sharpness": rng.lognormal(-4.9, 1.1, n),
        "colourfulness": rng.gamma(4, 11, n),
        "noise": rng.gamma(1.2, 0.9, n),
        "blockiness": 1 + rng.gamma(1.5, 0.15, n),
    }
    local, flicker = motion * rng.beta(4, 3, n), rng.lognormal(-7, 1.2, n)
    camera = rng.choice(CAMERAS, n, p=CAMERA_SHARES).tolist()
    kinds = {name: SHOTS.type.value_type.field(name).type for name in ("frames", "motions", "samples")}
    frames, motions, samples = [], [], []
    for i, (start, end) in enumerate(itertools.pairwise(edges.tolist())):
        if still:
            frames.append({"pts": [start], "skipped": [0], "peak": [0.0], "luma": [0.5]})
        else:
            frames.append(_frames(start, end, float(frozen[i]), float(flicker[i])))
            motions.append(_motions(start, end, camera[i], float(motion[i]), float(local[i])))
        sample = {name: [float(values[i])] for name, values in statistics.items()}
        samples.append({"pts": [start], **sample, "loop_filtered": [True]})
    return {
        "crop": pa.ListArray.from_arrays(
            pa.array(np.arange(n + 1) * 4, pa.int32()), pa.array(crop.ravel(), pa.int32())
        ),
        "frame_interval_pts": pa.array([float(FRAME_TICKS)] * n),
        "frames": pa.array(frames, kinds["frames"]),
        "motions": pa.nulls(n, kinds["motions"]) if still else pa.array(motions, kinds["motions"]),
        "samples": pa.array(samples, kinds["samples"]),
        "cut_in": pa.array([1.3 if one == "cut-in" and not still else None for one in camera], pa.float64()),
    }


def _frames(start: int, end: int, frozen: float, flicker: float) -> dict[str, list[Any]]:
    """Return three neighbouring frames that flicker, and two that end a freeze and the shot."""
    frozen_ticks = int(frozen * (end - start - 4 * FRAME_TICKS)) if frozen else FRAME_TICKS
    pts = [start, start + FRAME_TICKS, start + 2 * FRAME_TICKS, start + 2 * FRAME_TICKS + frozen_ticks, end - 1]
    pts = sorted(set(pts))
    skipped = [max(0, round((b - a) / FRAME_TICKS) - 1) for a, b in itertools.pairwise([start, *pts])]
    peaks = [30.0, 9.0, 9.0, 0.1 if frozen else 9.0, 9.0][: len(pts)]
    return {"pts": pts, "skipped": skipped, "peak": peaks, "luma": [0.5, 0.5 + flicker, 0.5, 0.5, 0.5][: len(pts)]}


def _motions(start: int, end: int, camera: str, speed: float, local: float) -> dict[str, list[Any]]:
    """Return the motion of the two halves of a shot, whose camera moves as it is called."""
    middle, moves = (start + end) // 2, max(speed, 0.02)
    parts: dict[str, list[Any]] = {name: [0.0, 0.0] for name in ("pan", "tilt", "zoom", "roll")}
    if camera in ("pan", "tilt"):
        parts[camera] = [moves, moves]
    elif camera == "zoom":
        parts["zoom"] = [4 * moves, 4 * moves]
    elif camera == "handheld":
        parts["pan"] = [moves, -moves]
    times = {"start_pts": [start, middle], "end_pts": [middle, end - 1]}
    return {**times, "speed": [speed, speed], **parts, "local": [local, local], "known_share": [1.0, 1.0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    recipe = write_run(arguments.folder, arguments.clips, arguments.seed)
    print(json.dumps({"recipe": str(recipe), "clips": arguments.clips, "seconds": round(time.monotonic() - start, 1)}))


if __name__ == "__main__":
    main()
