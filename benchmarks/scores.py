"""CPU time of the images and the scores of clips, and the scores of each clip.

    python -m benchmarks.scores DIR [--steps score.text_area,score.people] [--clip ViT-B-32] [--subtitles]

Every video in DIR is scanned and cut with the defaults; then step `frames` and each score process all clips. Loading a
network is not counted. `plain_decode_cpu_s` is PyAV reading every frame of the files that gave a clip, for comparison
with `frames`.

`--subtitles` draws a line of white letters with a black rim into the lower part of the first two images of the clips
whose text_area is 0.01 at most, in several sizes, and reports the share of these clips that then is above 0.01.
`--clip` adds `score.embedding` on a model of open_clip with random weights, which cost the same as trained ones.
Prints one line per clip and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import open_clip  # type: ignore[import-untyped,unused-ignore]
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.torch import save_file

from benchmarks.measuring import cpu_s
from benchmarks.scan import decode
from pipelines.engine.sources import SourceSettings, list_sources
from pipelines.engine.step import Context, Mark, Step, set_column, start_fates
from pipelines.recipe import build_step
from pipelines.steps.cut import Cut
from pipelines.steps.frames import FRAMES
from pipelines.steps.scan import Scan
from pipelines.steps.score._base import decode_jpeg
from pipelines.video.still_images import encode_jpeg

CONTEXT = Context("", 0)
MAX_TEXT_AREA = 0.01
"""Largest text_area of a clip that counts as without text."""
UPSCALE = 4
"""Factor by which images are enlarged to draw letters."""
SUBTITLE = "where were you last night"
LETTER_PERCENTS = (2, 3, 4, 6)
"""Heights of capitals in percent of the image's height."""
CAPITAL_PX = 22
"""Height of a capital of OpenCV's font FONT_HERSHEY_SIMPLEX at scale 1."""


@dataclass(frozen=True)
class Cost:
    """The CPU time of a step over all clips."""

    cpu_s: float
    clips: int
    images: int
    video_s: float

    def figures(self) -> dict[str, float]:
        """Return the CPU time as JSON keys, in all and per unit."""
        per = {"clip": self.clips, "image": self.images, "second": self.video_s}
        return {
            "cpu_s": round(self.cpu_s, 3),
            **{f"cpu_ms_per_{unit}": round(1000 * self.cpu_s / n, 2) for unit, n in per.items()},
        }


def clips_of(folder: Path) -> pa.Table:
    """Return a live row for each clip of every video that can be decoded."""
    sources = start_fates(list_sources((SourceSettings(videos=f"{folder}/*.{{mp4,mkv,webm,mov,avi}}"),)))
    clips: list[dict[str, Any]] = []
    for row in Scan().open(CONTEXT)(sources).to_pylist():
        found = Cut().expand(row) if row["fate"] == "kept" else Mark("failed", row["fate_reason"])
        if not isinstance(found, Mark):
            clips += [{**{key: row[key] for key in ("source", "kind", "width", "height")}, **clip} for clip in found]
    names = ("uid", "source", "kind", "width", "height", "clip_index", "start_pts", "end_pts", "duration_s")
    return start_fates(pa.table({name: [clip[name] for clip in clips] for name in names}))


def apply(step: Step, table: pa.Table) -> tuple[pa.Table, float]:
    """Return the table after a step and the CPU seconds of the step, without opening it."""
    function = step.open(CONTEXT)
    start_s = time.process_time()
    table = function(table)
    return table, time.process_time() - start_s


def subtitled(data: bytes, letter_share: float) -> bytes:
    """Return a JPEG image with a line of text whose capitals are `letter_share` of its height.

    The text is drawn on the enlarged image and scaled down with it.
    """
    image = decode_jpeg(data)
    height, width = image.shape[:2]
    large = cv2.resize(image, (UPSCALE * width, UPSCALE * height), interpolation=cv2.INTER_CUBIC)
    scale = UPSCALE * letter_share * height / CAPITAL_PX
    origin = (large.shape[1] // 10, large.shape[0] * 9 // 10)
    for colour, thickness in (((0, 0, 0), 5 * scale), ((255, 255, 255), 2.5 * scale)):
        cv2.putText(large, SUBTITLE, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, round(thickness), cv2.LINE_AA)
    return encode_jpeg(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA), 90)


def recall(table: pa.Table) -> dict[str, float]:
    """Return the share of clips without text that are above `MAX_TEXT_AREA` with it, by height of the letters."""
    step = build_step({"score.text_area": {}})
    plain = apply(step, table)[0]
    plain = plain.filter(pc.less_equal(plain["text_area"], MAX_TEXT_AREA))
    shares = {}
    for percent in LETTER_PERCENTS:
        drawn = [[subtitled(data, percent / 100) for data in images[:2]] for images in plain["frames"].to_pylist()]
        found, _ = apply(step, set_column(plain, FRAMES, drawn))
        shares[f"{percent:g}"] = round(float(pc.mean(pc.greater(found["text_area"], MAX_TEXT_AREA)).as_py()), 3)
    return {"clips": len(plain), **shares}


def random_model(name: str, folder: str) -> str:
    """Save a model of open_clip with random weights and return its folder."""
    (Path(folder) / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config(name)}))
    save_file(open_clip.create_model(name).state_dict(), str(Path(folder) / "open_clip_model.safetensors"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", default="score.text_area,score.people", help="names of scores, separated by commas")
    parser.add_argument("--clip", help="name of a model of open_clip, run with random weights")
    parser.add_argument("--subtitles", action="store_true", help="also measure how small letters are found")
    arguments = parser.parse_args()
    table = clips_of(arguments.folder)
    files = sorted(set(table["source"].to_pylist()))
    plain_s = sum(cpu_s(partial(decode, file)) for file in files)
    table, frames_s = apply(build_step({"frames": {}}), table)
    n_images = sum(len(images or ()) for images in table["frames"].to_pylist())
    n_bytes = sum(len(image) for images in table["frames"].to_pylist() for image in images or ())
    video_s = sum(table["duration_s"].to_pylist())
    costs = {"frames": Cost(frames_s, len(table), n_images, video_s)}
    columns: list[str] = []
    for name in filter(None, arguments.steps.split(",")):
        step = build_step({name: {}})
        table, step_s = apply(step, table)
        costs[name] = Cost(step_s, len(table), n_images, video_s)
        columns += [field.name for field in step.writes()]
    if arguments.clip:
        with tempfile.TemporaryDirectory() as folder:
            _, step_s = apply(build_step({"score.embedding": {"model": random_model(arguments.clip, folder)}}), table)
        costs[f"score.embedding {arguments.clip}"] = Cost(step_s, len(table), n_images, video_s)
    print(f"{'clip':36}", *(f"{name:>18}" for name in columns))
    for row in table.sort_by([("source", "ascending"), ("clip_index", "ascending")]).to_pylist():
        values = (
            "-" if row[name] is None else f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name])
            for name in columns
        )
        print(f"{Path(row['source']).name[:32]:32} {row['clip_index']:3}", *(f"{value:>18}" for value in values))
    result: dict[str, Any] = {
        "clips": len(table),
        "images": n_images,
        "seconds": round(video_s, 2),
        "kb_per_image": round(n_bytes / n_images / 1000, 1),
        "plain_decode_cpu_s": round(plain_s, 3),
        "steps": {name: cost.figures() for name, cost in costs.items()},
    }
    if arguments.subtitles:
        result["subtitles_found_by_letter_percent"] = recall(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
