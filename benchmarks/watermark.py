"""The invisible watermark: how often it is found and read after edits, how often where there is none, and its cost.

    python -m benchmarks.watermark --footage FOLDER [--model drawn-world] [--sizes 64x48 96x64 320x240]
                                   [--methods spread_spectrum rivagan] [--edits none h264-28] [--seconds 2]
                                   [--clips 6] [--unmarked 10000] [--seed 0]

Marks clips of the footage at each size, and as many samples of the model if one is named, edits them, and looks for the
mark. Footage that is reduced to a small size is the hardest: it is rougher than anything a small model makes. All edits
but `none` and `frame` end with H.264 at crf 18, unless they name another codec. `unmarked` frames are random parts of
frames of the footage, at random sizes, each a test of its own. `methods` are kinds of watermarks, by default all that
this machine can use; one that refuses a size has no figures there. Prints a line per source, size and kind, and last
JSON: by these and by edit the share of clips in which the mark is `found`, in which the whole payload is
`read`, and the share of right `bits`, of the payload or of the network's word; the median and lowest `psnr` in dB of
marked to unmarked clips; `mark_ms` and `find_s`, the CPU time of marking a frame and of a search in an unmarked clip;
and by kind the `false_positives` of `unmarked` frames, beside the stated bound.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from benchmarks.measuring import cpu_s, video_files
from cluster import plugins
from cluster.arrays import Pixels
from pipelines.commands._inspection import usable_methods
from training.sampling.exported_model import ExportedModel
from training.sampling.learned_watermark import LearnedWatermark, judge, word_of
from training.sampling.watermark import PUBLIC_KEY
from training.sampling.watermark_detection import FALSE_POSITIVES, Detection
from training.sampling.watermark_method import FOLDER, WatermarkMethod

FPS = 8
PAYLOAD = 0xC0FFEE42
CODECS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}
Edit = Callable[[Pixels], tuple[Pixels, float]]
"""A function that returns edited frames `[T, H, W, 3]` and their rate."""


def encoded(frames: Pixels, codec: str = "h264", crf: int = 18, fps: float = FPS) -> tuple[Pixels, float]:
    """Return frames as they are after encoding."""
    file, options = io.BytesIO(), {"crf": str(crf)}
    if codec == "vp9":
        options["b:v"] = "0"
    if codec == "hevc":
        options["x265-params"] = "log-level=none"
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(CODECS[codec], rate=round(fps), options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as source:
        return np.stack([_pixels(frame) for frame in source.decode(video=0)]), fps


def _pixels(frame: av.VideoFrame) -> Pixels:
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def scaled(frames: Pixels, factor: float) -> Pixels:
    """Return frames at another size, of even sides."""
    height, width = frames.shape[1:3]
    size = 2 * round(width * factor / 2), 2 * round(height * factor / 2)
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, size, interpolation=method) for frame in frames])


def scaled_and_encoded(frames: Pixels, factor: float) -> tuple[Pixels, float]:
    """Return frames at another size, as they are after encoding."""
    return encoded(scaled(frames, factor))


def cropped(frames: Pixels, share: float = 0.8) -> Pixels:
    """Return the centre of frames, of even sides, that begins at an odd pixel."""
    height, width = frames.shape[1:3]
    top, left = int(height * (1 - share) / 2) | 1, int(width * (1 - share) / 2) | 1
    return frames[:, top : top + int(height * share) // 2 * 2, left : left + int(width * share) // 2 * 2]


def at_rate(frames: Pixels, fps: float) -> tuple[Pixels, float]:
    """Return frames at another rate: some are left out, or repeated."""
    chosen = np.floor(np.arange(0, len(frames), FPS / fps)).astype(int)
    return encoded(frames[np.minimum(chosen, len(frames) - 1)], fps=fps)


def with_gamma(frames: Pixels, gamma: float) -> Pixels:
    """Return frames with another gamma."""
    return np.rint(255 * (frames / 255) ** gamma).astype(np.uint8)


EDITS: Mapping[str, Edit] = {
    "none": lambda frames: (frames, FPS),
    **{f"h264-{crf}": partial(encoded, crf=crf) for crf in (18, 23, 28, 35)},
    "hevc-28": lambda frames: encoded(frames, "hevc", 28),
    "vp9-32": lambda frames: encoded(frames, "vp9", 32),
    **{f"scale-{factor}": partial(scaled_and_encoded, factor=factor) for factor in (0.5, 0.75, 1.5, 2)},
    "crop-0.8": lambda frames: encoded(cropped(frames)),
    "cut-0.4s": lambda frames: encoded(frames[3:]),
    "6fps": lambda frames: at_rate(frames, 6),
    "24fps": lambda frames: at_rate(frames, 24),
    "bright+25": lambda frames: encoded(np.clip(frames.astype(int) + 25, 0, 255).astype(np.uint8)),
    "gamma-1.25": lambda frames: encoded(with_gamma(frames, 1.25)),
    "gamma-0.8": lambda frames: encoded(with_gamma(frames, 0.8)),
    "frame": lambda frames: (frames[len(frames) // 2 :][:1], FPS),
}


def frames_of(path: Path, fps: float = FPS) -> Iterator[Pixels]:
    """Yield the frames `[H, W, 3]` of a video at a rate; none of one that cannot be decoded."""
    try:
        with av.open(str(path)) as container:
            due_s = -math.inf
            for frame in container.decode(video=0):
                if (frame.time or 0.0) >= due_s:
                    yield _pixels(frame)
                    due_s = (frame.time or 0.0) + 1 / fps - 1e-3
    except av.error.FFmpegError:
        return


def covering(frame: Pixels, width: int, height: int) -> Pixels:
    """Return the centre of a frame, scaled to cover a size."""
    rows, columns = frame.shape[:2]
    factor = max(width / columns, height / rows)
    size = max(width, round(columns * factor)), max(height, round(rows * factor))
    frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return frame[top : top + height, left : left + width]


def find(method: WatermarkMethod, frames: Pixels, fps: float) -> tuple[Detection, float]:
    """Return what is found in frames, and the share of the bits that are those of `PAYLOAD`."""
    timed = ((index / fps, frame) for index, frame in enumerate(frames))
    if isinstance(method, LearnedWatermark):
        word = method.read_word(timed)
        right = word * word_of(PAYLOAD, method.word_bits, PUBLIC_KEY) > 0
        return judge(word, PUBLIC_KEY), float(right.mean())
    found = method.detect(timed, PUBLIC_KEY)
    return found, 1 - (found.word ^ PAYLOAD).bit_count() / 32


def measure(clips: list[Pixels], method: WatermarkMethod, edits: Sequence[str]) -> dict[str, object]:
    """Return the figures of clips of one size and a kind of watermark."""
    mark, marked = method.marker(PAYLOAD, PUBLIC_KEY), list[Pixels]()
    found = dict[str, list[tuple[Detection, float]]]()

    def mark_all() -> None:
        marked.extend(np.stack([mark.mark(frame, index, FPS) for index, frame in enumerate(clip)]) for clip in clips)

    mark_s = cpu_s(mark_all)
    errors = [np.mean((one.astype(float) - clip) ** 2) for one, clip in zip(marked, clips, strict=True)]
    psnrs = [10 * math.log10(255**2 / error) for error in errors]
    for name in edits:
        found[name] = [find(method, *EDITS[name](clip)) for clip in marked]
    find_s = cpu_s(lambda: [find(method, clip, FPS) for clip in clips])

    def shares(of: Callable[[Detection, float], float]) -> dict[str, float]:
        return {name: round(float(np.mean([of(*one) for one in ones])), 3) for name, ones in found.items()}

    return {
        "found": shares(lambda one, _: one.found),
        "read": shares(lambda one, _: one.payload == PAYLOAD),
        "bits": shares(lambda _, right: right),
        "psnr": round(float(np.median(psnrs)), 1),
        "psnr_lowest": round(min(psnrs), 1),
        "mark_ms": round(1000 * mark_s / sum(map(len, clips)), 2),
        "find_s": round(find_s / len(clips), 2),
    }


def unmarked_parts(paths: list[Path], count: int, seed: int) -> Iterator[Pixels]:
    """Yield random parts of frames at random sizes, from 64x48 to 192x144; 16 of a frame."""
    rng = np.random.default_rng(seed)
    while True:
        for path in paths:
            for frame in frames_of(path, fps=4):
                for _ in range(16):
                    if count == 0:
                        return
                    count -= 1
                    share, size = rng.uniform(0.3, 1), rng.integers(4, 13)
                    height, width = (int(side * share) for side in frame.shape[:2])
                    top, left = rng.integers(frame.shape[0] - height + 1), rng.integers(frame.shape[1] - width + 1)
                    yield covering(frame[top : top + height, left : left + width], 16 * int(size), 12 * int(size))


def main(arguments: argparse.Namespace) -> None:
    """Measure marked clips and unmarked frames, and print the figures."""
    cv2.setNumThreads(1)
    paths = video_files(arguments.footage)
    methods = usable_methods()
    if arguments.methods:
        methods = [plugins.build(FOLDER, WatermarkMethod, name) for name in arguments.methods]
    results: dict[str, dict[str, object]] = {}

    def add(source: str, clips: list[Pixels]) -> None:
        for method in methods:
            if clips[0].shape[1] * clips[0].shape[2] >= method.min_pixels:
                results[f"{source} {method.name}"] = measure(clips, method, arguments.edits)
                print(f"{source} {method.name}", results[f"{source} {method.name}"], flush=True)

    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        clips, n_frames = [], 1 + round(arguments.seconds * FPS)
        for path in paths:
            frames = [
                covering(frame, width, height) for _, frame in zip(range(n_frames), frames_of(path), strict=False)
            ]
            clips += [np.stack(frames)] if len(frames) == n_frames else []
        add(f"footage {size}", clips[: arguments.clips])
        if arguments.model and max(width, height) <= 128:
            model = ExportedModel(arguments.model)
            prompts = (
                "A red circle spins.",
                "A blue square falls in front of a grey wall.",
                "The camera pans to the left.",
            )
            samples = [
                model.sample(
                    prompts[seed % 3],
                    seconds=arguments.seconds,
                    size=(width, height),
                    seed=seed,
                    steps=12,
                    guidance=1.5,
                )
                for seed in range(arguments.clips)
            ]
            add(f"samples {size}", samples)
    tests: dict[str, list[Detection]] = {method.name: [] for method in methods}
    for number, part in enumerate(unmarked_parts(paths, arguments.unmarked, arguments.seed), 1):
        for method in methods:
            tests[method.name].append(method.detect([(0.0, part)], PUBLIC_KEY))
        if number % 500 == 0:
            n_found = {name: sum(one.found for one in ones) for name, ones in tests.items()}
            print(f"{number} unmarked, of which are found: {n_found}", flush=True)
    result = {
        "benchmark": "watermark",
        "clips": arguments.clips,
        "results": results,
        "unmarked": arguments.unmarked,
        "false_positives": {name: sum(one.found for one in ones) for name, ones in tests.items()},
        "bound": FALSE_POSITIVES,
        "lowest_log_p": {name: round(min((one.log_p for one in ones), default=0.0), 1) for name, ones in tests.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", type=Path, required=True)
    parser.add_argument("--model", help="export, or name of a shipped model, whose samples are marked too")
    parser.add_argument("--sizes", nargs="*", default=["64x48", "96x64", "320x240"])
    parser.add_argument("--methods", nargs="*", help="kinds of watermarks, by default all that can be used here")
    parser.add_argument("--edits", nargs="*", default=list(EDITS), choices=list(EDITS))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--unmarked", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="another one takes other parts of the frames")
    main(parser.parse_args())
