"""CPU time of step `encode` beside its unavoidable part: decoding the frames it uses, and the autoencoder alone.

    python -m benchmarks.encode FOLDER [--size 256] [--repeats 5] [--causal WEIGHTS]

Every clip of 1 to 5 s of the footage goes through the step, in this process, with `linear` and, if weights are given,
with `causal`. Beside that, in CPU seconds:

- a plain PyAV decode of the same spans at full size, from the key frame before each to its last sampled frame, in one
  thread, of which nothing is converted or kept;
- the same with the sampled frames as full-size RGB arrays;
- the autoencoder's forward pass on pixels that are already decoded, in the same batches, last-frame latents included.

`cpu_ratio` is the step over the sum of decode and forward pass, `cpu_ratio_to_rgb` that with arrays. The rest is
seeking, scaling, cropping, checks by decoding some clips again, SSIM, checksums and writing shards. The minimum of
several repeats counts for each. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.measuring import cpu_s
from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine.sources import SourceSettings
from pipelines.engine.step import Context, start_fates
from pipelines.recipe import Recipe
from pipelines.steps._samples import windows_of
from pipelines.steps._window_decoding import batch_size as batch_size_of
from pipelines.steps.caption import Caption
from pipelines.steps.cut import Cut
from pipelines.steps.encode import Encode
from pipelines.steps.scan import Scan
from pipelines.video.spans import target_pts
from training.autoencoder import Autoencoder, AutoencoderSettings
from training.autoencoders.causal import Causal
from training.autoencoders.linear import Linear
from training.data.buckets import Bucket, BucketSettings
from training.data.windows import Window

FPS, FRAMES = 8.0, (1, 9, 17, 33)
RATIOS = {"cpu_ratio": "decode", "cpu_ratio_to_rgb": "decode_rgb"}
"""The decode that each ratio counts besides the forward pass."""
COLUMNS = Encode(buckets=(BucketSettings(size=64, frames=FRAMES, fps=FPS),)).requires()
"""Columns that the step reads."""

ClipWindows = tuple[dict[str, Any], tuple[Window, ...]]
"""Row of a clip, and its windows."""


def clips_of(folder: Path, out: Path) -> pa.Table:
    """Return the clips of 1 to 5 s of every file that a run without filters has."""
    steps = (Scan(), Cut(min_s=1.0, max_s=5.0), Caption(engine="signals"))
    recipe = Recipe(name="encode", out=str(out), sources=(SourceSettings(videos=f"{folder}/*"),), curate=steps)
    rows = run_segments(recipe, inline).final.rows.live().read(["uid", "clip_index", *COLUMNS])
    return start_fates(rows.filter(pc.is_valid(rows["clip_index"])))


def plain_decode(clips: Sequence[ClipWindows], as_rgb: bool) -> None:
    """Decode each clip once, and convert the sampled frames of its windows to RGB arrays if asked."""
    for row, windows in clips:
        base = Fraction(row["time_base_num"], row["time_base_den"])
        sampled = (target_pts(one.start_pts, one.end_pts, one.bucket.fps, one.bucket.frames, base) for one in windows)
        targets = sorted({pts for window in sampled for pts in window})
        with av.open(row["source"]) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            container.seek(row["start_pts"], stream=stream)
            number = 0
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts < targets[number]:
                    continue
                if as_rgb:
                    frame.to_ndarray(format="rgb24")
                while number < len(targets) and frame.pts >= targets[number]:
                    number += 1
                if number == len(targets):
                    break


def forward_pass(autoencoder: Autoencoder, clips: Sequence[ClipWindows]) -> Callable[[], None]:
    """Return a function that encodes random pixels in the batches that the step makes of the clips."""
    counts: dict[Bucket, int] = defaultdict(int)
    for _, windows in clips:
        for window in windows:
            counts[window.bucket] += 1
    batches = []
    for bucket, count in counts.items():
        batch_size = batch_size_of(bucket, torch.device("cpu"))
        video_BCTHW = torch.rand(min(batch_size, count), 3, bucket.frames, bucket.height, bucket.width) * 2 - 1
        batches += [video_BCTHW[: min(batch_size, count - start)] for start in range(0, count, batch_size)]

    @torch.inference_mode()
    def run() -> None:
        for video_BCTHW in batches:
            autoencoder.encode(video_BCTHW)
            if video_BCTHW.shape[2] > 1:
                autoencoder.encode(video_BCTHW[:, :, -1:])

    return run


def measure(settings: AutoencoderSettings, table: pa.Table, size: int, repeats: int) -> dict[str, float]:
    """Return the CPU seconds of each part and the ratios."""
    step = Encode(autoencoder=settings, buckets=(BucketSettings(size=size, frames=FRAMES, fps=FPS),))
    no_uids = pa.array([], pa.string())
    clips = clips_with_windows(step, table)

    def encode() -> None:
        with tempfile.TemporaryDirectory() as out:
            done = step.open(Context(out, 0, "0" * 32, no_uids))(table)
            failed = [row["fate_reason"] for row in done.to_pylist() if row["fate"] == "failed"]
            assert not failed, failed[0]

    parts = {
        "decode": lambda: plain_decode(clips, as_rgb=False),
        "decode_rgb": lambda: plain_decode(clips, as_rgb=True),
        "forward": forward_pass(settings.open(), clips),
        "step": encode,
    }
    # In turn, so that other work on the machine affects all of them.
    seconds = [{name: cpu_s(part) for name, part in parts.items()} for _ in range(repeats)]
    best = {name: min(repeat[name] for repeat in seconds) for name in parts}
    ratios = {name: round(best["step"] / (best[decode] + best["forward"]), 3) for name, decode in RATIOS.items()}
    return {**{f"{name}_cpu_s": round(value, 2) for name, value in best.items()}, **ratios}


def clips_with_windows(step: Encode, table: pa.Table) -> list[ClipWindows]:
    """Return the rows that have windows, with them."""
    found = [(row, windows_of(row, step.sample_rules)) for row in table.to_pylist()]
    return [(row, windows) for row, windows in found if not isinstance(windows, str)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--causal", help="weights that `worldloom train-autoencoder` wrote")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    autoencoders: dict[str, AutoencoderSettings] = {"linear16": Linear()}
    if arguments.causal:
        autoencoders["causal16"] = Causal(weights=arguments.causal)
    with tempfile.TemporaryDirectory() as out:
        table = clips_of(arguments.folder, Path(out))
        step = Encode(buckets=(BucketSettings(size=arguments.size, frames=FRAMES, fps=FPS),))
        n_clips = len(clips_with_windows(step, table))
        found = {
            name: measure(settings, table, arguments.size, arguments.repeats) for name, settings in autoencoders.items()
        }
    print(json.dumps({"clips": n_clips, "size": arguments.size, **found}))


if __name__ == "__main__":
    main()
