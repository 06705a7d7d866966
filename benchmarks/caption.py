"""Cost of captioning besides the engine: CPU time of the step per clip, and how often its video is decoded.

    python -m benchmarks.caption [DIR] [--clips 1000] [--images 8]

The overhead is measured on clips with random images of 23 kB each, in tasks of the size that a run makes, with an
engine that takes no time. It is all of step `caption` with its checks and its journal on a disk, in milliseconds of CPU
per clip (`wall_ms_per_clip` includes waiting for the disk).

Decodes are counted on videos: those in DIR, or generated ones that give 1,000 clips of a second. `scan`, `cut`,
`frames` and `caption` run in this process as `--inline` does. Every clip whose images are decoded and every file that
is opened after the cut is counted. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from captioning.engine import Answer, Captioner, CaptionerSettings, Question
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Context, start_fates
from pipelines.engine.tables import task_size
from pipelines.recipe import Recipe
from pipelines.steps.caption import Caption
from pipelines.steps.cut import Cut
from pipelines.steps.frames import FRAMES, Frames
from pipelines.steps.scan import Scan
from pipelines.video import frame_images
from pipelines.video.decode import OPEN_LOG, Video
from pipelines.video.frame_images import FrameImages, FrameSampling
from pipelines.video.scale import Box

IMAGE_BYTES = 23_000
SECONDS, FPS = 250, 8
"""Length and frames per second of a generated video; four of them give 1,000 clips of a second."""
WORDS = (
    *("brown", "dog", "runs", "along", "wet", "beach", "while", "low", "waves", "break", "behind", "it"),
    *("under", "grey", "clouds", "and", "gulls", "turn", "over", "old", "wooden", "pier", "with", "lamps"),
)


class Instant(CaptionerSettings):
    """Settings of an engine that answers in no time, with different words for each clip."""

    name: str = "instant"

    def identity(self) -> str:
        return "instant-v1"

    def open(self) -> Captioner:
        return InstantCaptioner()


class InstantCaptioner(Captioner):
    """The engine of `Instant`."""

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for question in questions:
            rng = np.random.default_rng(int(question.uid, 16) % 2**63)
            captions = {
                name: "A " + " ".join(rng.permutation(WORDS)[:n]) + "."
                for name, n in (("dense", 22), ("medium", 15), ("short", 9))
            }
            captions["dense"] = " ".join(
                [captions["dense"]] + ["The " + " ".join(rng.permutation(WORDS)) + "." for _ in range(4)]
            )
            yield Answer(question.key, question.uid, json.dumps(captions), tokens_in=1000, tokens_out=180)


def clips(count: int, n_images: int) -> pa.Table:
    """Return live rows of clips with random images."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "uid": [rng.bytes(10).hex() for _ in range(count)],
        "source": [f"video{i // 10}.mp4" for i in range(count)],
        "source_caption": [f"holiday {i}" if i % 2 else None for i in range(count)],
        "kind": ["video"] * count,
        "camera": ["pan"] * count,
        "duration_s": [4.0] * count,
        "frames": pa.array([[rng.bytes(IMAGE_BYTES) for _ in range(n_images)] for _ in range(count)], FRAMES.type),
        "frame_times_s": [[4.0 * (k + 0.5) / n_images for k in range(n_images)] for _ in range(count)],
    }
    return start_fates(pa.table(columns))


def overhead(count: int, n_images: int, folder: str) -> dict[str, float]:
    """Return the milliseconds of the step per clip, of CPU and on the clock, without its start.

    The start loads the language detector.
    """
    table = clips(count, n_images)
    function = Caption(engine=Instant()).open(Context(folder, 0, "benchmark"))
    function(clips(1, n_images))
    size = task_size(count, Caption.rows_per_part)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    for start in range(0, count, size):
        done = function(table.slice(start, size).combine_chunks())
        assert set(done["fate"].to_pylist()) == {"kept"}, done["fate_reason"].to_pylist()
    cpu_s, wall_s = time.process_time() - start_cpu_s, time.perf_counter() - start_s
    return {"overhead_ms_per_clip": round(1000 * cpu_s / count, 3), "wall_ms_per_clip": round(1000 * wall_s / count, 3)}


def write_videos(folder: Path) -> None:
    """Write four videos of slowly changing stripes without a cut, each of `SECONDS` seconds."""
    for number in range(4):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"g": "32", "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
            y, x = np.mgrid[0:96, 0:160]
            for k in range(SECONDS * FPS):
                grey = 128 + 60 * np.sin(0.08 * x + 0.05 * number * y + 0.05 * k)
                frame = av.VideoFrame.from_ndarray(
                    np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2), format="rgb24"
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@contextmanager
def recorded_spans() -> Iterator[list[tuple[str, int, int]]]:
    """Record the spans (source, start PTS, end PTS) whose images are decoded in the block."""
    spans: list[tuple[str, int, int]] = []
    read_images = frame_images._read_images

    def recording(
        video: Video, reader: Any, span: tuple[int, int], box: Box | None, sampling: FrameSampling
    ) -> FrameImages:
        spans.append((video.uri, *span))
        return read_images(video, reader, span, box, sampling)

    frame_images._read_images = recording
    try:
        yield spans
    finally:
        frame_images._read_images = read_images


def decodes(folder: Path, out: Path) -> dict[str, float]:
    """Return the decodes and the opened files per clip, between the cut and the last caption."""
    log = out / "opens"
    sources = (SourceSettings(videos=f"{folder}/*.{{mp4,mkv,webm,mov,avi}}"),)
    before = (Scan(), Cut(lengths_s=(1.0,)))
    run_segments(Recipe(name="benchmark", out=str(out), sources=sources, curate=before), inline)
    os.environ[OPEN_LOG] = str(log)
    with recorded_spans() as spans:
        steps = (*before, Frames(), Caption(engine=Instant()))
        curation = run_segments(Recipe(name="benchmark", out=str(out), sources=sources, curate=steps), inline)
    rows = curation.final.rows.read(["uid", "clip_index", "fate"])
    n_clips = sum(index is not None for index in rows["clip_index"].to_pylist())
    opened = log.read_text().splitlines() if log.exists() else []
    return {
        "clips": n_clips,
        "captioned": rows["fate"].to_pylist().count("kept"),
        "decodes_per_clip": round(len(spans) / n_clips, 3),
        "opens_per_clip": round(len(opened) / n_clips, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="videos to count decodes on; four are generated if not given"
    )
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--images", type=int, default=8, help="images per clip in the measurement of overhead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result: dict[str, float] = overhead(arguments.clips, arguments.images, temporary)
        folder = arguments.folder
        if folder is None:
            folder = Path(temporary) / "generated"
            folder.mkdir()
            write_videos(folder)
        result |= decodes(folder, Path(temporary))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
