"""Measure shot detection: ours and PySceneDetect's two on the same edits.

    python -m benchmarks.shots [--seeds 100-119] [--videos FOLDER]

Prints a table, and one line of JSON last. `edits.py` makes the edits, the same ones for all methods. A hard cut is
found if a prediction is at most 2 frames off, and a gradual transition if a prediction overlaps its labelled span. Each
label and each prediction counts once. A prediction left over inside a labelled span counts as a false gradual
transition (the shot is split twice); elsewhere it counts as false of its kind. A method that predicts only cuts finds a
gradual transition by a cut inside the span, and has no false cuts there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, detect
from scenedetect.detector import SceneDetector

from benchmarks.edits import Label, make_edit
from cluster.arrays import Int64Array
from pipelines.video.decode import open_video
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.gop_segments import GopSegments
from pipelines.video.scan import ScanSettings, scan_video, single_threaded_opencv
from pipelines.video.segment_meter import Measurements, SegmentMeter
from pipelines.video.shot_boundaries import Boundary, find_boundaries

TOLERANCE = 2
SHORT = 6
"""Frames of the longest predicted transition that counts as a hard cut."""
MIN_SHOT_S = 0.25
"""Seconds, below the shortest shot of the edits (0.3 s). PySceneDetect's default, 15 frames, hides short shots."""


@dataclass(frozen=True)
class Predicted:
    """A predicted transition from frame `start` to `end`; for a cut both are the first frame of the new shot."""

    is_cut: bool
    start: int
    end: int


@dataclass
class Tally:
    """The counts of a method over all edits."""

    found: Counter[str] = field(default_factory=Counter)
    labelled: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    overlap: float = 0.0
    cpu_s: float = 0.0

    def row(self, name: str) -> dict[str, float | str]:
        """Return precision, recall and F1 of both kinds, and the mean intersection over union of gradual ones."""
        out: dict[str, float | str] = {"method": name}
        for kind in ("hard", "gradual"):
            found = self.found[kind]
            precision, recall = found / max(1, found + self.false[kind]), found / max(1, self.labelled[kind])
            f1 = 2 * found / max(1, found + self.false[kind] + self.labelled[kind])
            out |= {
                f"{kind}_f1": round(f1, 4),
                f"{kind}_precision": round(precision, 4),
                f"{kind}_recall": round(recall, 4),
            }
        return out | {
            "gradual_iou": round(self.overlap / max(1, self.found["gradual"]), 3),
            "cpu_s": round(self.cpu_s, 2),
        }


def features_of(path: Path) -> FrameFeatures:
    """Return the features of every frame of a file, as the scan measures them."""
    with single_threaded_opencv(), open_video(str(path)) as video:
        meter = SegmentMeter(video, "signature", None, MIN_SHOT_S, 0)
        return Measurements.concatenate(
            [piece for piece in map(meter.measure_segment, GopSegments(video, skip=False)) if piece is not None]
        ).features


def add(tally: Tally, labels: Sequence[Label], predictions: Sequence[Predicted]) -> None:
    """Match the predictions of an edit with its labels, by the rules in the docstring of this module."""
    left = list(predictions)
    hard = [label for label in labels if label.kind == "cut"]
    gradual = [label for label in labels if label.kind != "cut"]
    tally.labelled["hard"] += len(hard)
    tally.labelled["gradual"] += len(gradual)
    for label in hard:
        near = [p for p in left if p.start - TOLERANCE <= label.start <= p.end + TOLERANCE and p.end - p.start <= SHORT]
        if near:
            left.remove(min(near, key=lambda p: abs(p.start + p.end - 2 * label.start)))
            tally.found["hard"] += 1
    for label in gradual:
        near = [p for p in left if p.start <= label.end and p.end >= label.start]
        if near:
            best = max(near, key=lambda p: _iou(p, label))
            left.remove(best)
            tally.found["gradual"] += 1
            tally.overlap += _iou(best, label)
    for p in left:
        inside = any(p.start <= label.end and p.end >= label.start for label in gradual)
        tally.false["hard" if p.is_cut and not inside else "gradual"] += 1


def _iou(p: Predicted, label: Label) -> float:
    return max(0, min(p.end, label.end) - max(p.start, label.start)) / max(
        1, max(p.end, label.end) - min(p.start, label.start)
    )


def _ours(pts_N: Int64Array, boundaries: Sequence[Boundary]) -> list[Predicted]:
    return [
        Predicted(b.kind == "cut", *(int(np.searchsorted(pts_N, pts)) for pts in (b.start_pts, b.end_pts)))
        for b in boundaries
    ]


def _pyscenedetect(path: Path, detector: SceneDetector) -> list[Predicted]:
    return [Predicted(True, start.frame_num, start.frame_num) for start, _ in detect(str(path), detector)[1:]]


def methods_of(path: Path) -> dict[str, Callable[[], list[Predicted]]]:
    """Return the methods by name, each a function that predicts the transitions of a file."""
    features = features_of(path)

    def skipping() -> list[Predicted]:
        return _ours(features.pts_N, scan_video(str(path), ScanSettings(min_shot_s=MIN_SHOT_S)).boundaries)

    def all_frames() -> list[Predicted]:
        return _ours(features.pts_N, find_boundaries(features, "signature", None, MIN_SHOT_S).boundaries)

    return {
        "signature, with skipped frames": skipping,
        "signature, all frames": all_frames,
        "pyscenedetect content": lambda: _pyscenedetect(path, ContentDetector(min_scene_len=MIN_SHOT_S)),
        "pyscenedetect adaptive": lambda: _pyscenedetect(path, AdaptiveDetector(min_scene_len=MIN_SHOT_S)),
    }


def run(seeds: Sequence[int], videos: Path, folder: Path) -> list[dict[str, float | str]]:
    """Make the edits of the seeds, run every method, and return a row per method."""
    tallies: dict[str, Tally] = {}
    for seed in seeds:
        edit = make_edit(seed, videos, folder)
        for name, method in methods_of(edit.path).items():
            started = time.process_time()
            predictions = method()
            tally = tallies.setdefault(name, Tally())
            tally.cpu_s += time.process_time() - started
            add(tally, edit.labels, predictions)
        edit.path.unlink()
    return [tally.row(name) for name, tally in tallies.items()]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="100-119", help="first-last, both included; the weights were fitted to 0-19")
    default = os.environ.get("WORLDLOOM_VIDEOS", str(Path(__file__).resolve().parents[2] / "shared" / "videos"))
    parser.add_argument("--videos", type=Path, default=Path(default))
    arguments = parser.parse_args()
    first, last = (int(part) for part in arguments.seeds.split("-"))
    with tempfile.TemporaryDirectory() as folder:
        rows = run(range(first, last + 1), arguments.videos, Path(folder))
    columns = [
        ("hard_f1", "hard F1"),
        ("hard_precision", "P"),
        ("hard_recall", "R"),
        ("gradual_f1", "gradual F1"),
        ("gradual_precision", "P"),
    ]
    columns += [("gradual_recall", "R"), ("gradual_iou", "IoU"), ("cpu_s", "CPU s")]
    print(f"{'method':32}" + "".join(f"{title:>11}" for _, title in columns))
    for row in rows:
        print(f"{row['method']:32}" + "".join(f"{row[key]:>11}" for key, _ in columns))
    print(json.dumps({"benchmark": "shots", "seeds": arguments.seeds, "rows": rows}))


if __name__ == "__main__":
    main()
