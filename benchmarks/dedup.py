"""How well near-duplicates are found, what is taken for one and is none, and what a million hashes cost.

    python -m benchmarks.dedup DIR [--hashes 1000000] [--demo 24] [--only growth|footage]

Copies of every video in `DIR` that can be decoded, of the kinds in `benchmarks/variants.py`, go through the scan, `cut` and `dedup` with their
default settings, one kind at a time beside the originals. Recall is the share of copied clips that come to be in one cluster with the
clip they are of, of those that show at least 60 % of it or are to 60 % in it. False pairs are near-duplicates among clips of different
files: of the files as they are, of all their copies, and of drawn demo footage, whose scenes look alike.
`DIR` may itself be drawn by `worldloom demo-footage`; which of its files are copies is then read from there.

Growth is the CPU time of `dedup` for `--hashes` synthetic hashes over that for 10,000, divided by how many times as many they are: 1 is
linear. Sequences of 16 hashes, of which 5 % are planted copies. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.variants import KINDS, Variant, write_variants
from pipelines.duplicates.clip_hashes import READ_COLUMNS, as_clips
from pipelines.duplicates.near import NearThresholds, near_pairs
from pipelines.engine.shuffle import LocalRows
from pipelines.engine.step import Mark
from pipelines.scenes.footage import TRUTH_FILE, make_footage
from pipelines.steps.cut import Cut
from pipelines.steps.dedup import Dedup
from pipelines.steps.scan import Scan
from pipelines.video.decode import DecodeError
from pipelines.video.phash import is_informative

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
SAME = ({"carphone_pristine", "carphone_distorted"},)
"""Files of the test footage that show the same."""

FIELDS = {
    "uid": pa.string(),
    "source": pa.string(),
    "content_hash": pa.string(),
    "kind": pa.string(),
    **dict.fromkeys(("width", "height"), pa.int32()),
    **dict.fromkeys(("duration_s", "sharpness"), pa.float64()),
    **dict.fromkeys(("start_pts", "end_pts", "first_pts", "time_base_num", "time_base_den"), pa.int64()),
    "phash": pa.binary(),
}
PART = 4096
LENGTH = 16
FLIP, DRIFT = 0.04, 0.05
"""Chance of each bit to differ between a synthetic sequence and its copy, and between one hash of it and the next."""


def clips_of(path: Path, kind: str = "video") -> list[dict[str, Any]]:
    """Clip rows as a recipe's scan and cut give them. Raises `DecodeError`."""
    row: dict[str, Any] = {
        "uid": path.name,
        "source": str(path),
        "kind": kind,
        "sidecar": None,
        "size_bytes": path.stat().st_size,
    }
    row |= Scan()._scan(row)
    clips = Cut().expand(row)
    return (
        [] if isinstance(clips, Mark) else [{name: clip.get(name, row.get(name)) for name in FIELDS} for clip in clips]
    )


def rows_of(clips: Iterable[dict[str, Any]]) -> LocalRows:
    return LocalRows([pa.Table.from_pylist(list(clips), pa.schema(list(FIELDS.items())))])


def span_s(clip: dict[str, Any], start_s: float) -> tuple[float, float]:
    unit_s = clip["time_base_num"] / clip["time_base_den"]
    return start_s + (clip["start_pts"] - clip["first_pts"]) * unit_s, start_s + (
        clip["end_pts"] - clip["first_pts"]
    ) * unit_s


def true_pairs(
    originals: Sequence[dict[str, Any]], copies: Sequence[dict[str, Any]], start_s: float
) -> list[tuple[str, list[str]]]:
    """For each copied clip the originals it repeats; flat ones (black, a plain colour) show nothing and do not count."""
    found = []
    for copy in copies:
        a = span_s(copy, start_s)
        of = []
        for original in originals:
            b = span_s(original, 0.0)
            shows = is_informative(np.frombuffer(original["phash"], "<u8").astype(np.uint64)).mean() >= 0.5
            if shows and min(a[1], b[1]) - max(a[0], b[0]) >= 0.6 * min(a[1] - a[0], b[1] - b[0]):
                of.append(original["uid"])
        if of:
            found.append((copy["uid"], of))
    return found


def base(path: Path) -> str:
    """What a file shows: its name, or the first of the files that show the same. Drawn footage says so itself."""
    if (truth := path.parent / TRUTH_FILE).exists():
        return next(
            Path(entry["copy_of"] or entry["file"]).stem
            for entry in json.loads(truth.read_bytes())["videos"]
            if entry["file"] == path.name
        )
    return next((min(group) for group in SAME if path.stem in group), path.stem)


def recall_of(
    kind: str, originals: dict[str, list[dict[str, Any]]], copies: dict[str, tuple[Variant, list[dict[str, Any]]]]
) -> dict[str, Any]:
    clips = [clip for clips in originals.values() for clip in clips] + [
        clip for _, clips in copies.values() for clip in clips
    ]
    solved = Dedup().solve(rows_of(clips))
    cluster = dict(zip(solved["uid"].to_pylist(), solved["cluster"].to_pylist(), strict=True))
    wanted, missed = 0, []
    for stem, (variant, made) in copies.items():
        for uid, of in true_pairs(originals[stem], made, variant.start_s):
            wanted += 1
            if not any(uid in cluster and cluster[uid] == cluster.get(other) for other in of):
                missed.append(stem)
    return {"recall": round(1 - len(missed) / max(1, wanted), 3), "clips": wanted, "missed": missed}


def footage(folder: Path, n_demo: int, work: Path) -> dict[str, Any]:
    """Recall by kind, and false pairs."""
    originals: dict[str, list[dict[str, Any]]] = {}
    copies: dict[str, dict[str, tuple[Variant, list[dict[str, Any]]]]] = {kind.name: {} for kind in KINDS}
    whole: dict[str, list[dict[str, Any]]] = {}
    skipped = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in VIDEOS:
            continue
        try:
            whole[path.stem] = clips_of(path)
            for variant in write_variants(path, work):
                made = clips_of(variant.path)
                if variant.kind == "original":
                    originals[path.stem] = made
                else:
                    copies[variant.kind][path.stem] = variant, made
        except DecodeError:
            skipped.append(path.name)
            continue
        print(
            f"{path.name:34} {len(whole[path.stem]):3} clips as it is, {len(originals[path.stem]):3} of the first seconds",
            flush=True,
        )
    recall = {kind.name: recall_of(kind.name, originals, copies[kind.name]) for kind in KINDS}
    for kind, row in recall.items():
        print(
            f"{kind:12} {row['recall']:6.3f} of {row['clips']:3} clips; missed {', '.join(row['missed']) or 'none'}",
            flush=True,
        )
    real = {clip["source"]: base(Path(clip["source"])) for clips in whole.values() for clip in clips}
    shown = {Path(source).stem: name for source, name in real.items()}
    made = [clip for group in copies.values() for _, clips in group.values() for clip in clips]
    every = [clip for clips in (*whole.values(), *originals.values()) for clip in clips] + made
    of = {clip["source"]: shown[Path(clip["source"]).stem.split("__")[0]] for clip in every}
    drawn, drawn_of = demo(work / "demo", n_demo) if n_demo else ([], {})
    return {
        "recall": {kind: row["recall"] for kind, row in recall.items()},
        "clips": {kind: row["clips"] for kind, row in recall.items()},
        "missed": {kind: row["missed"] for kind, row in recall.items() if row["missed"]},
        "false_pairs": false_pairs([clip for clip in every if clip["source"] in real], real),
        "false_pairs_of_copies": false_pairs(every, of),
        "false_pairs_drawn": false_pairs(drawn, drawn_of),
        "real_clips": sum(map(len, whole.values())),
        "copied_clips": len(made),
        "drawn_clips": len(drawn),
        "cannot_be_decoded": skipped,
    }


def demo(folder: Path, n: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Clips of drawn footage, and which file each of its files is a copy of."""
    truth = make_footage(folder, n)
    clips, of = [], {}
    for entry in (*truth["videos"], *truth["images"]):
        path = folder / entry["file"]
        of[str(path)] = entry.get("copy_of") or entry["file"]
        try:
            clips += clips_of(path, "video" if path.suffix == ".mp4" else "image")
        except DecodeError:
            continue
    return clips, of


def false_pairs(clips: Sequence[dict[str, Any]], of: dict[str, str]) -> int:
    """Near-duplicates of clips that do not show the same."""
    if not clips:
        return 0
    pairs = near_pairs(rows_of(clips).map(as_clips), NearThresholds()).to_pylist()
    false = [pair for pair in pairs if of[pair["a_source"]] != of[pair["b_source"]]]
    for pair in false[:20]:
        print(
            f"false: {pair['a_source']} and {pair['b_source']}, {pair['distance']:.1f} bits, mirrored {pair['mirrored']}"
        )
    return len(false)


def synthetic(n_hashes: int, seed: int = 0) -> tuple[LocalRows, int]:
    """Clips with `n_hashes` hashes in all, eight clips a file, and how many of them are copies of others."""
    rng = np.random.default_rng(seed)

    def flips(chance: float, shape: tuple[int, int]) -> NDArray[np.uint64]:
        bits = np.zeros(shape, np.uint64)
        for bit in range(64):
            bits |= (rng.random(shape) < chance).astype(np.uint64) << np.uint64(bit)
        return bits

    n = n_hashes // LENGTH
    hashes = np.empty((n, LENGTH), np.uint64)
    hashes[:, 0] = rng.integers(0, 2**64, n, np.uint64)
    drift = flips(DRIFT, (n, LENGTH - 1))
    for i in range(1, LENGTH):
        hashes[:, i] = hashes[:, i - 1] ^ drift[:, i - 1]
    copies = n // 20
    hashes[n - copies :] = hashes[:copies] ^ flips(FLIP, (copies, LENGTH))
    same = {
        "kind": "video",
        "width": 640,
        "height": 360,
        "duration_s": LENGTH / 4,
        "sharpness": 0.1,
        "first_pts": 0,
        "time_base_num": 1,
        "time_base_den": 25,
    }
    tables = []
    for start in range(0, n, PART):
        numbers = range(start, min(n, start + PART))
        columns = {
            "uid": [f"{i:020x}" for i in numbers],
            "source": [f"s3://bucket/videos/{i // 8}.mp4" for i in numbers],
            "content_hash": [f"{i // 8:020x}" for i in numbers],
            "start_pts": [i % 8 * 100 for i in numbers],
            "end_pts": [i % 8 * 100 + 100 for i in numbers],
            "phash": [row.tobytes() for row in hashes[start : start + PART].astype("<u8")],
            **{name: [value] * len(numbers) for name, value in same.items()},
        }
        tables.append(pa.table({name: pa.array(columns[name], kind) for name, kind in FIELDS.items()}))
    return LocalRows(tables), copies


def cost(n_hashes: int) -> tuple[float, float]:
    """CPU seconds of the step, and the share of planted copies it found."""
    rows, copies = synthetic(n_hashes)
    start = time.process_time()
    solved = Dedup().solve(rows)
    return time.process_time() - start, solved["fate"].to_pylist().count("duplicate") / copies


def growth(n_hashes: int) -> dict[str, Any]:
    small = statistics.median(cost(10_000)[0] for _ in range(7))
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    times = [cost(n_hashes) for _ in range(3)]
    large = statistics.median(seconds for seconds, _ in times)
    return {
        "growth_10k_to_1M" if n_hashes == 1_000_000 else "growth": round(large / small / (n_hashes / 10_000), 3),
        "hashes": n_hashes,
        "cpu_s": round(large, 2),
        "cpu_s_of_10k": round(small, 4),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_mb_before": before_mb,
        "synthetic_recall": round(times[0][1], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--demo", type=int, default=24, help="videos of drawn footage")
    parser.add_argument("--only", choices=("growth", "footage"))
    arguments = parser.parse_args()
    assert set(FIELDS) == set(READ_COLUMNS)
    result: dict[str, Any] = {}
    if arguments.only != "footage":
        result |= growth(arguments.hashes)
        print(result, flush=True)
    if arguments.only != "growth":
        with tempfile.TemporaryDirectory() as work:
            result |= footage(arguments.folder, arguments.demo, Path(work))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
