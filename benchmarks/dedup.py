"""Recall and false pairs of near-duplicate search on edited footage, and its CPU time for a million hashes.

    python -m benchmarks.dedup DIR [--hashes 1000000] [--demo 24] [--only growth|splits|footage]

Copies of every video in `DIR` that can be decoded, of the kinds in `benchmarks/variants.py`, go through the scan, `cut`
and `dedup` with their default settings, one kind at a time beside the originals. Recall is the share of copied clips
that end in one cluster with their original, of those that share at least 60% of the shorter of the two. False pairs are
near-duplicates among clips of different files: of the unedited files, of all their copies, and of generated demo
footage, whose scenes look alike. `DIR` may itself be written by `worldloom demo-footage`; its list of copies is then
used.

Growth is the CPU time of `dedup` for `--hashes` synthetic hashes over that for 10,000, divided by the ratio of their
numbers: 1 is linear. There are sequences of 16 hashes, of which 5% are planted copies. A run over a million hashes is
done once, others three times. `--only splits` finds the closest pairs of clips across splits, as `audit` does, with a
sixteenth of the files in `val`. Prints one line of JSON last.
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
import pyarrow.compute as pc

from benchmarks.measuring import video_files
from benchmarks.variants import KINDS, Variant, write_variants
from cluster.arrays import UInt64Array
from pipelines.duplicates.across import closest_across
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

SAME_CONTENT = ({"carphone_pristine", "carphone_distorted"},)
"""Sets of files of the test footage that show the same."""

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
PART_ROWS = 4096
SEQUENCE_LENGTH = 16
COPY_FLIPS, NEXT_FLIPS = 0.04, 0.05
"""Probability of each bit to differ between a synthetic sequence and its copy, and between one hash and the next."""
VAL_DIGIT = "7"
"""Last digit of the content hash of synthetic files in `val`."""
MAX_REPEATED = 1_000_000
"""Largest number of hashes for which the growth is the median of several runs."""
MIN_OVERLAP = 0.6
"""Smallest share of the shorter clip that a copy and its original have in common."""

Clip = dict[str, Any]
"""A row of `FIELDS`."""


def clips_of(path: Path, kind: str = "video") -> list[Clip]:
    """Return the clips that scan and cut give of a file. Raises `DecodeError`."""
    row: dict[str, Any] = {
        "uid": path.name,
        "source": str(path),
        "kind": kind,
        "sidecar": None,
        "size_bytes": path.stat().st_size,
    }
    row |= Scan()._scan(row)
    clips = Cut().expand(row)
    if isinstance(clips, Mark):
        return []
    return [{name: clip.get(name, row.get(name)) for name in FIELDS} for clip in clips]


def rows_of(clips: Iterable[Clip]) -> LocalRows:
    """Return clips as rows of one table."""
    return LocalRows([pa.Table.from_pylist(list(clips), pa.schema(list(FIELDS.items())))])


def span_s(clip: Clip, start_s: float) -> tuple[float, float]:
    """Return the start and end of a clip in seconds, for a file whose first frame is at `start_s`."""
    unit_s = clip["time_base_num"] / clip["time_base_den"]
    start, end = (start_s + (clip[name] - clip["first_pts"]) * unit_s for name in ("start_pts", "end_pts"))
    return start, end


def true_pairs(originals: Sequence[Clip], copies: Sequence[Clip], start_s: float) -> list[tuple[str, list[str]]]:
    """Return the uid of each copied clip and the uids of the originals it overlaps.

    Flat originals (black, a plain colour) have nothing to recognise and do not count.
    """
    found = []
    for copy in copies:
        a = span_s(copy, start_s)
        overlapping = []
        for original in originals:
            b = span_s(original, 0.0)
            informative = is_informative(np.frombuffer(original["phash"], "<u8").astype(np.uint64)).mean() >= 0.5
            if informative and min(a[1], b[1]) - max(a[0], b[0]) >= MIN_OVERLAP * min(a[1] - a[0], b[1] - b[0]):
                overlapping.append(original["uid"])
        if overlapping:
            found.append((copy["uid"], overlapping))
    return found


def content_of(path: Path) -> str:
    """Return a name for the content of a file: its own, or that of the first file that shows the same.

    Generated footage comes with a list of its copies.
    """
    if (truth := path.parent / TRUTH_FILE).exists():
        return next(
            Path(entry["copy_of"] or entry["file"]).stem
            for entry in json.loads(truth.read_bytes())["videos"]
            if entry["file"] == path.name
        )
    return next((min(group) for group in SAME_CONTENT if path.stem in group), path.stem)


def recall_of(originals: dict[str, list[Clip]], copies: dict[str, tuple[Variant, list[Clip]]]) -> dict[str, Any]:
    """Return the recall of the copies of one kind, their number, and the file of each copy that was missed."""
    clips = [clip for clips in originals.values() for clip in clips]
    clips += [clip for _, clips in copies.values() for clip in clips]
    solved = Dedup().solve(rows_of(clips))
    cluster = dict(zip(solved["uid"].to_pylist(), solved["cluster"].to_pylist(), strict=True))
    n_copies, missed = 0, []
    for stem, (variant, copied_clips) in copies.items():
        for uid, overlapping in true_pairs(originals[stem], copied_clips, variant.start_s):
            n_copies += 1
            if not any(uid in cluster and cluster[uid] == cluster.get(other) for other in overlapping):
                missed.append(stem)
    return {"recall": round(1 - len(missed) / max(1, n_copies), 3), "clips": n_copies, "missed": missed}


def footage(folder: Path, n_demo: int, work: Path) -> dict[str, Any]:
    """Return the recall by kind of copy, and the numbers of false pairs."""
    originals: dict[str, list[Clip]] = {}
    copies: dict[str, dict[str, tuple[Variant, list[Clip]]]] = {kind.name: {} for kind in KINDS}
    whole: dict[str, list[Clip]] = {}
    skipped = []
    for path in video_files(folder):
        try:
            whole[path.stem] = clips_of(path)
            for variant in write_variants(path, work):
                variant_clips = clips_of(variant.path)
                if variant.kind == "original":
                    originals[path.stem] = variant_clips
                else:
                    copies[variant.kind][path.stem] = variant, variant_clips
        except DecodeError:
            skipped.append(path.name)
            continue
        print(
            f"{path.name:34} {len(whole[path.stem]):3} clips, {len(originals[path.stem]):3} in the first seconds",
            flush=True,
        )
    recall = {kind.name: recall_of(originals, copies[kind.name]) for kind in KINDS}
    for kind, row in recall.items():
        print(
            f"{kind:12} {row['recall']:6.3f} of {row['clips']:3} clips; missed {', '.join(row['missed']) or 'none'}",
            flush=True,
        )
    content_of_real = {clip["source"]: content_of(Path(clip["source"])) for clips in whole.values() for clip in clips}
    content_of_stem = {Path(source).stem: content for source, content in content_of_real.items()}
    copied = [clip for group in copies.values() for _, clips in group.values() for clip in clips]
    every = [clip for clips in (*whole.values(), *originals.values()) for clip in clips] + copied
    content = {clip["source"]: content_of_stem[Path(clip["source"]).stem.split("__")[0]] for clip in every}
    demo_clips, demo_content = demo(work / "demo", n_demo) if n_demo else ([], {})
    return {
        "recall": {kind: row["recall"] for kind, row in recall.items()},
        "clips": {kind: row["clips"] for kind, row in recall.items()},
        "missed": {kind: row["missed"] for kind, row in recall.items() if row["missed"]},
        "false_pairs": false_pairs([clip for clip in every if clip["source"] in content_of_real], content_of_real),
        "false_pairs_of_copies": false_pairs(every, content),
        "false_pairs_demo": false_pairs(demo_clips, demo_content),
        "real_clips": sum(map(len, whole.values())),
        "copied_clips": len(copied),
        "demo_clips": len(demo_clips),
        "cannot_be_decoded": skipped,
    }


def demo(folder: Path, n: int) -> tuple[list[Clip], dict[str, str]]:
    """Return the clips of generated footage, and the content of each of its files by path."""
    truth = make_footage(folder, n)
    clips, content = [], {}
    for entry in (*truth["videos"], *truth["images"]):
        path = folder / entry["file"]
        content[str(path)] = entry.get("copy_of") or entry["file"]
        try:
            clips += clips_of(path, "video" if path.suffix == ".mp4" else "image")
        except DecodeError:
            continue
    return clips, content


def false_pairs(clips: Sequence[Clip], content: dict[str, str]) -> int:
    """Return the number of near-duplicates whose sources have different content, and print the first 20."""
    if not clips:
        return 0
    pairs = near_pairs(rows_of(clips).map(as_clips), NearThresholds()).to_pylist()
    false = [pair for pair in pairs if content[pair["a_source"]] != content[pair["b_source"]]]
    for pair in false[:20]:
        print(
            f"false: {pair['a_source']} and {pair['b_source']}, {pair['distance']:.1f} bits, "
            f"mirrored {pair['mirrored']}"
        )
    return len(false)


def synthetic(n_hashes: int, seed: int = 0) -> tuple[LocalRows, int]:
    """Return clips with `n_hashes` hashes in all, eight clips per file, and the number of copies among them."""
    rng = np.random.default_rng(seed)

    def flips(probability: float, shape: tuple[int, int]) -> UInt64Array:
        bits = np.zeros(shape, np.uint64)
        for bit in range(64):
            bits |= (rng.random(shape) < probability).astype(np.uint64) << np.uint64(bit)
        return bits

    n = n_hashes // SEQUENCE_LENGTH
    hashes = np.empty((n, SEQUENCE_LENGTH), np.uint64)
    hashes[:, 0] = rng.integers(0, 2**64, n, np.uint64)
    flipped = flips(NEXT_FLIPS, (n, SEQUENCE_LENGTH - 1))
    for i in range(1, SEQUENCE_LENGTH):
        hashes[:, i] = hashes[:, i - 1] ^ flipped[:, i - 1]
    copies = n // 20
    hashes[n - copies :] = hashes[:copies] ^ flips(COPY_FLIPS, (copies, SEQUENCE_LENGTH))
    constant = {
        "kind": "video",
        "width": 640,
        "height": 360,
        "duration_s": SEQUENCE_LENGTH / 4,
        "sharpness": 0.1,
        "first_pts": 0,
        "time_base_num": 1,
        "time_base_den": 25,
    }
    tables = []
    for start in range(0, n, PART_ROWS):
        numbers = range(start, min(n, start + PART_ROWS))
        columns = {
            "uid": [f"{i:020x}" for i in numbers],
            "source": [f"s3://bucket/videos/{i // 8}.mp4" for i in numbers],
            "content_hash": [f"{i // 8:020x}" for i in numbers],
            "start_pts": [i % 8 * 100 for i in numbers],
            "end_pts": [i % 8 * 100 + 100 for i in numbers],
            "phash": [row.tobytes() for row in hashes[start : start + PART_ROWS].astype("<u8")],
            **{name: [value] * len(numbers) for name, value in constant.items()},
        }
        tables.append(pa.table({name: pa.array(columns[name], kind) for name, kind in FIELDS.items()}))
    return LocalRows(tables), copies


def cost(n_hashes: int) -> tuple[float, float]:
    """Return the CPU seconds of the step, and the share of planted copies it found."""
    rows, copies = synthetic(n_hashes)
    start = time.process_time()
    solved = Dedup().solve(rows)
    return time.process_time() - start, solved["fate"].to_pylist().count("duplicate") / copies


def growth(n_hashes: int) -> dict[str, Any]:
    """Return the growth of CPU time from 10,000 to `n_hashes` hashes, and peak memory."""
    small = statistics.median(cost(10_000)[0] for _ in range(7))
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    times = [cost(n_hashes) for _ in range(3 if n_hashes <= MAX_REPEATED else 1)]
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


def splits(n_hashes: int) -> dict[str, Any]:
    """Return the CPU time and peak memory of the search for the closest pairs across splits."""
    rows, _ = synthetic(n_hashes)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start = time.process_time()
    found = closest_across(rows.map(with_split), "split")
    return {
        "splits_hashes": n_hashes,
        "splits_cpu_s": round(time.process_time() - start, 2),
        "splits_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "splits_peak_mb_before": before_mb,
        "splits_distances": [round(distance, 3) for distance in found["distance"].to_pylist()],
    }


def with_split(rows: pa.Table) -> pa.Table:
    """Add the split to synthetic clips: `val` for a sixteenth of the files."""
    in_val = pc.equal(pc.utf8_slice_codeunits(rows["content_hash"], -1), VAL_DIGIT)
    return rows.append_column("split", pc.if_else(in_val, "val", "train"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--demo", type=int, default=24, help="number of generated demo videos; 0 for none")
    parser.add_argument("--only", choices=("growth", "splits", "footage"))
    arguments = parser.parse_args()
    assert set(FIELDS) == set(READ_COLUMNS)
    result: dict[str, Any] = {}
    if arguments.only in (None, "growth"):
        result |= growth(arguments.hashes)
        print(result, flush=True)
    if arguments.only == "splits":
        result |= splits(arguments.hashes)
    if arguments.only in (None, "footage"):
        with tempfile.TemporaryDirectory() as work:
            result |= footage(arguments.folder, arguments.demo, Path(work))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
