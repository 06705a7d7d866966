"""Near-copies of real footage, edited as copies on the web are: every edit keeps the content and its times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cluster.arrays import Pixels
from pipelines.video.decode import probe, read_frames

AREA = 480 * 270
"""Area in pixels that footage is scaled down to first, since the time to encode 2160p is not measured."""
MAX_LENGTH_S = 15.0


@dataclass(frozen=True)
class Kind:
    """A kind of copy: an edit of each frame, how the copy is encoded, and the part of the original that it keeps."""

    name: str
    edit: Callable[[Pixels, int], Pixels]
    """Function of a frame and its number."""
    crf: int = 23
    start_s: float = 0.0
    start_share: float = 0.0
    """The part starts at `start_s` seconds or this share of the original's duration, whichever is later."""
    end_share: float = 1.0
    """Share of the original's duration at which the part ends."""
    fps_factor: float | None = None
    """Frame rate of the copy over that of the original; None keeps the frames."""


def _same(image: Pixels, number: int) -> Pixels:
    return image


def _scaled(factor: float) -> Callable[[Pixels, int], Pixels]:
    def scaled(image: Pixels, number: int) -> Pixels:
        interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=interpolation), np.uint8)

    return scaled


def _letterbox(image: Pixels, number: int) -> Pixels:
    bar = image.shape[0] // 6
    return np.pad(image, ((bar, bar), (0, 0), (0, 0)))


def _pillarbox(image: Pixels, number: int) -> Pixels:
    bar = image.shape[1] // 5
    return np.pad(image, ((0, 0), (bar, bar), (0, 0)))


def _mirror(image: Pixels, number: int) -> Pixels:
    return np.ascontiguousarray(image[:, ::-1])


def _colour(image: Pixels, number: int) -> Pixels:
    """Apply gamma 0.75, contrast 1.2, and half the saturation."""
    x = 255 * (image / 255.0) ** 0.75
    x = (x - 128) * 1.2 + 128
    grey = x.mean(axis=2, keepdims=True)
    coloured: Pixels = np.clip(grey + (x - grey) * 0.5, 0, 255).astype(np.uint8)
    return coloured


def _logo(image: Pixels, number: int) -> Pixels:
    out = image.copy()
    height, width = image.shape[:2]
    logo = out[height // 20 : height // 5, -width // 4 : -width // 20]
    logo[:] = (0.3 * logo + 0.7 * 240).astype(np.uint8)
    return out


def _subtitle(image: Pixels, number: int) -> Pixels:
    out = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    for line in range(2):
        text = f"line {number // 45} of what is said {line}"
        origin = (width // 10, height - height // 12 - line * height // 10)
        for colour, thickness in (((0, 0, 0), 5), ((255, 255, 255), 2)):
            cv2.putText(out, text, origin, cv2.FONT_HERSHEY_SIMPLEX, width / 640, colour, thickness, cv2.LINE_AA)
    return out


def _zoom(image: Pixels, number: int) -> Pixels:
    """Crop to the middle 92% of each side and enlarge."""
    height, width = image.shape[:2]
    y, x = round(height * 0.04), round(width * 0.04)
    return np.asarray(
        cv2.resize(image[y : height - y, x : width - x], (width, height), interpolation=cv2.INTER_LINEAR), np.uint8
    )


def _combined(image: Pixels, number: int) -> Pixels:
    return _letterbox(_colour(_mirror(_scaled(0.6)(image, number), number), number), number)


KINDS = (
    Kind("reencode", _same, crf=34),
    Kind("rescale", _scaled(1 / 3)),
    Kind("enlarge", _scaled(1.5)),
    Kind("trim", _same, start_s=0.37, end_share=0.9),
    Kind("letterbox", _letterbox),
    Kind("pillarbox", _pillarbox),
    Kind("mirror", _mirror),
    Kind("colour", _colour),
    Kind("subclip", _same, start_share=0.25, end_share=0.75),
    Kind("fps", _same, fps_factor=0.8),
    Kind("combined", _combined, crf=30, start_s=0.37),
    Kind("logo", _logo),
    Kind("subtitle", _subtitle),
    Kind("zoom", _zoom),
)


@dataclass(frozen=True)
class Variant:
    """A copy, and the time in seconds of its first frame in the original."""

    kind: str
    path: Path
    start_s: float


def footage(path: Path) -> tuple[list[Pixels], list[float], float]:
    """Return the frames of a video's first `MAX_LENGTH_S` seconds, scaled to `AREA`, their times, and the frame rate.

    Raises `DecodeError`.
    """
    info = probe(str(path))
    scale = min(1.0, (AREA / (info.width * info.height)) ** 0.5)
    size = tuple(max(16, round(side * scale / 2) * 2) for side in (info.width, info.height))
    frames, times = [], []
    for pts, frame in read_frames(str(path), *size):
        time_s = float((pts - info.start_pts) * info.time_base)
        if time_s >= MAX_LENGTH_S:
            break
        frames.append(np.ascontiguousarray(frame))
        times.append(time_s)
    return frames, times, float(info.fps or len(frames) / max(times[-1], 0.1))


def write_variants(path: Path, folder: Path, kinds: tuple[Kind, ...] = KINDS) -> Iterator[Variant]:
    """Write the scaled and shortened original (kind "original") and a copy of each kind. Raises `DecodeError`."""
    frames, times, fps = footage(path)
    total_s = times[-1] + 1 / fps
    for kind in (Kind("original", _same, crf=18), *kinds):
        start_s = max(kind.start_s, kind.start_share * total_s)
        chosen = [i for i, time_s in enumerate(times) if start_s <= time_s < kind.end_share * total_s]
        if len(chosen) < 2:
            continue
        start_s = times[chosen[0]]
        if kind.fps_factor is not None:
            shown_s = np.arange(start_s, times[chosen[-1]], 1 / (fps * kind.fps_factor))
            chosen = [int(np.searchsorted(times, time_s + 1e-6) - 1) for time_s in shown_s]
            times_s = (shown_s - start_s).tolist()
        else:
            times_s = [times[i] - start_s for i in chosen]
        target = folder / f"{path.stem}__{kind.name}.mp4"
        _write(target, (kind.edit(frames[i], i) for i in chosen), times_s, kind.crf)
        yield Variant(kind.name, target, start_s)


def _write(path: Path, frames: Iterator[Pixels], times_s: list[float], crf: int) -> None:
    with av.open(str(path), "w") as container:
        stream = None
        for image, time_s in zip(frames, times_s, strict=True):
            height, width = (side // 2 * 2 for side in image.shape[:2])
            if stream is None:
                stream = container.add_stream("libx264", rate=30, options={"crf": str(crf), "preset": "ultrafast"})
                assert isinstance(stream, VideoStream)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = Fraction(1, 90_000)
                stream.codec_context.thread_count = 1
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), "rgb24")
            frame.pts, frame.time_base = round(time_s * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode(None))
