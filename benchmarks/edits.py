"""Edits with known transitions: single-shot footage spliced at random, encoded with libx264, the labels kept.

A seed decides everything. Footage is stretches of real videos in which no cut is (read off contact sheets), scenes drawn by
`pipelines.scenes`, and camera moves over large stills, so that whip pans occur. Into shots go what detectors mistake for cuts:
flashes, whip pans, and dark things that pass close to the camera.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.scenes.scene import ACTIONS, CAMERA_MOVES, Scene, choose_background, choose_bodies, render
from pipelines.video.decode import read_frames

Pixels = NDArray[np.uint8]
Kind = Literal["cut", "dissolve", "fade"]

WIDTH, HEIGHT = 480, 270

STRETCHES: dict[str, tuple[tuple[int, int], ...]] = {
    "talk_640x360.mp4": ((16, 142), (147, 235), (239, 278)),
    "talk_portrait_480x640.mp4": ((0, 190), (200, 380), (390, 556)),
    "motorcycle_2160p.mp4": ((0, 120),),
    "hydraulic_press_832x480.mp4": ((0, 114),),
    "carphone_pristine.mp4": ((0, 120),),
    "mpeg4_320x240.avi": ((0, 164),),
    "mpeg4_832x480.mp4": ((0, 81),),
    "short_1s_340x256.mp4": ((0, 32),),
    "nasa_320x180.mp4": ((0, 148), (178, 238), (242, 390)),
    "sintel_trailer_30s.mp4": (
        (108, 144),
        (258, 285),
        (288, 306),
        (426, 443),
        (504, 523),
        (524, 572),
        (574, 609),
        (654, 706),
    ),
}
"""File and frames, end exclusive, of stretches without a cut. No stretch follows itself in an edit."""
ONE_SHOT = frozenset({"talk_portrait_480x640.mp4"})
"""Files whose stretches are parts of one shot; they do not follow each other either."""

PURE_S = (0.3, 4.0)
"""Unmixed seconds of a shot next to cuts only; next to a gradual transition at least 0.5 s, as its ends are hard to tell otherwise."""
DISSOLVE, FADE, HOLD, FLASH = (6, 30), (6, 24), (0, 12), (1, 3)
"""Frames, ends inclusive: of a dissolve, of a fade each way, of the plain colour held between, of a flash."""


@dataclass(frozen=True)
class Label:
    """Frames `start` to `end` (exclusive) are mixed or plain; `end` is the first pure frame of the next shot. For a cut both are it."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True)
class Edit:
    """A file and what is in it."""

    path: Path
    fps: Fraction
    n_frames: int
    labels: tuple[Label, ...]
    flashes: tuple[int, ...]


@dataclass
class _Timeline:
    frames: list[Pixels] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    flashes: list[int] = field(default_factory=list)


def make_edit(seed: int, videos: Path, folder: Path, shots: int = 14) -> Edit:
    """Write `<folder>/edit_<seed>.mp4` from the footage under `videos`; about 30 s, 480 x 270."""
    rng = np.random.default_rng([2026, seed])
    fps = Fraction((24, 25, 30, Fraction(30000, 1001), Fraction(24000, 1001))[int(rng.integers(5))])
    timeline = _timeline(rng, float(fps), videos, shots)
    if rng.random() < 0.2:
        bar = int(rng.integers(20, 40))
        for picture in timeline.frames:
            picture[:bar] = picture[HEIGHT - bar :] = 0
    path = folder / f"edit_{seed}.mp4"
    _write(path, timeline.frames, fps, crf=int(rng.integers(18, 31)))
    return Edit(path, fps, len(timeline.frames), tuple(timeline.labels), tuple(timeline.flashes))


def _timeline(rng: np.random.Generator, fps: float, videos: Path, shots: int) -> _Timeline:
    out = _Timeline()
    joins = [str(rng.choice(["cut", "dissolve", "fade"], p=[0.6, 0.22, 0.18])) for _ in range(shots - 1)]
    ends = ["fade" if rng.random() < 0.25 else "none" for _ in range(2)]
    before = ""
    dissolve = 0
    for k in range(shots):
        into, out_of = ([ends[0], *joins][k], [*joins, ends[1]][k])
        gradual = {into, out_of} & {"dissolve", "fade"}
        shortest = max(PURE_S[0], 0.5) if gradual else PURE_S[0]
        n_pure = round(fps * float(np.exp(rng.uniform(np.log(shortest), np.log(PURE_S[1])))) + 0.5)
        head = dissolve if into == "dissolve" else int(rng.integers(FADE[0], FADE[1] + 1)) if into == "fade" else 0
        tail = int(rng.integers(DISSOLVE[0], DISSOLVE[1] + 1)) if out_of == "dissolve" else 0
        tail = int(rng.integers(FADE[0], FADE[1] + 1)) if out_of == "fade" else tail
        before, clip = _shot(rng, videos, head + n_pure + tail, before, fps)
        _flash(rng, clip, head, head + n_pure, len(out.frames) - (head if into == "dissolve" else 0), out)
        _append(out, clip, into, head)
        if out_of == "fade":
            colour = _fade_colour(rng)
            hold = int(rng.integers(HOLD[0], HOLD[1] + 1))
            for i in range(tail):
                out.frames[-tail + i] = _mix(out.frames[-tail + i], colour, (i + 1) / tail)
            out.frames += [colour.copy() for _ in range(hold)]
            if k == shots - 1:
                out.labels.append(Label("fade", len(out.frames) - tail - hold, len(out.frames)))
            else:
                out.labels.append(Label("fade", len(out.frames) - tail - hold, -1))
        dissolve = tail if out_of == "dissolve" else 0
    return out


def _append(out: _Timeline, clip: list[Pixels], into: str, head: int) -> None:
    if into == "cut":
        out.labels.append(Label("cut", len(out.frames), len(out.frames)))
        out.frames += clip
    elif into == "none":
        out.frames += clip
    elif into == "dissolve":
        start = len(out.frames) - head
        for i in range(head):
            out.frames[start + i] = _mix(out.frames[start + i], clip[i], (i + 1) / (head + 1))
        out.frames += clip[head:]
        out.labels.append(Label("dissolve", start, start + head))
    else:
        colour = out.frames[-1].copy() if out.frames else np.zeros_like(clip[0])
        start = out.labels.pop().start if out.frames else 0
        out.frames += [_mix(colour, picture, (i + 1) / (head + 1)) for i, picture in enumerate(clip[:head])] + clip[
            head:
        ]
        out.labels.append(Label("fade", start, len(out.frames) - len(clip) + head))


def _fade_colour(rng: np.random.Generator) -> Pixels:
    which = rng.random()
    rgb = (
        (0, 0, 0) if which < 0.6 else (255, 255, 255) if which < 0.8 else tuple(int(v) for v in rng.integers(0, 256, 3))
    )
    return np.full((HEIGHT, WIDTH, 3), rgb, np.uint8)


def _mix(old: Pixels, new: Pixels, share: float) -> Pixels:
    return np.asarray(cv2.addWeighted(old, 1 - share, new, share, 0), np.uint8)


def _flash(rng: np.random.Generator, clip: list[Pixels], start: int, end: int, at: int, out: _Timeline) -> None:
    """Brighten 1 to 3 frames of the pure part, at least 6 frames away from its ends."""
    n = int(rng.integers(FLASH[0], FLASH[1] + 1))
    if end - start < 16 + n or rng.random() > 0.25:
        return
    first = int(rng.integers(start + 6, end - n - 6))
    white = np.full_like(clip[0], 255)
    for i in range(n):
        clip[first + i] = _mix(clip[first + i], white, float(rng.uniform(0.4, 1.0)))
    out.flashes.append(at + first)


def _shot(rng: np.random.Generator, videos: Path, n: int, before: str, fps: float) -> tuple[str, list[Pixels]]:
    """`n` frames of one shot, and the name of what it is from."""
    while True:
        which = rng.random()
        if which < 0.12:
            return "drawn", _drawn(rng, n, fps)
        names = [name for name in STRETCHES if (videos / name).is_file()]
        if not names:
            return "drawn", _drawn(rng, n, fps)
        name = str(rng.choice(names))
        start, end = STRETCHES[name][int(rng.integers(len(STRETCHES[name])))]
        # Shots of one film follow each other, stretches of one shot do not.
        what = name if name in ONE_SHOT else f"{name}:{start}"
        if what == before:
            continue
        pictures = [
            np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
            for data in _footage(videos / name)[start:end]
        ]
        if which > 0.8:
            return what, list(_camera_move(rng, pictures[int(rng.integers(len(pictures)))], n))
        step = 2 if len(pictures) >= 2 * n and rng.random() < 0.3 else 1
        if len(pictures) < n * step:
            # There and back: continuous motion, and no cut at the seam.
            pictures = pictures + pictures[-2:0:-1]
            pictures = pictures * -(-n // len(pictures))
            step = 1
        first = int(rng.integers(len(pictures) - n * step + 1))
        clip = [picture.copy() for picture in pictures[first : first + n * step : step]]
        if rng.random() < 0.5:
            clip = [np.ascontiguousarray(picture[:, ::-1]) for picture in clip]
        if rng.random() < 0.25:
            # A dim shot: the differences that tell shots apart are small in the dark.
            clip = [
                cv2.convertScaleAbs(picture, alpha=dim) for dim in [float(rng.uniform(0.25, 0.6))] for picture in clip
            ]
        if n >= 20 and rng.random() < 0.15:
            _passer(rng, clip)
        return what, clip


@cache
def _footage(path: Path) -> tuple[NDArray[np.uint8], ...]:
    """All frames as JPEG files of 480 x 270: all of the footage as pixels would take 1 GB."""
    return tuple(
        np.asarray(cv2.imencode(".jpg", _cover(picture)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 96])[1], np.uint8)
        for _, picture in read_frames(str(path), *_cover_size(path))
    )


def _cover_size(path: Path) -> tuple[int, int]:
    from pipelines.video.decode import probe

    info = probe(str(path))
    scale = max(WIDTH / info.width, HEIGHT / info.height)
    return max(WIDTH, round(info.width * scale)), max(HEIGHT, round(info.height * scale))


def _cover(picture: Pixels) -> Pixels:
    y, x = (picture.shape[0] - HEIGHT) // 2, (picture.shape[1] - WIDTH) // 2
    return picture[y : y + HEIGHT, x : x + WIDTH]


def _drawn(rng: np.random.Generator, n: int, fps: float) -> list[Pixels]:
    bodies = choose_bodies(rng, int(rng.integers(1, 3)))
    action, move = ACTIONS[int(rng.integers(len(ACTIONS)))], CAMERA_MOVES[int(rng.integers(len(CAMERA_MOVES)))]
    scene = Scene(action, move, choose_background(rng, bodies, None), bodies, (n + 0.5) / fps)
    pictures = render(scene, WIDTH, HEIGHT, fps, (int(rng.integers(1 << 30)),))
    return [np.ascontiguousarray(picture) for picture in pictures[:n]] + [
        pictures[-1].copy() for _ in range(n - len(pictures))
    ]


def _camera_move(rng: np.random.Generator, still: Pixels, n: int) -> Iterator[Pixels]:
    """A camera over a wide still (mirrored on to both sides): a drift, and in half of them a whip pan of 4 to 12 frames, blurred as in a camera."""
    wide = np.concatenate([still, still[:, ::-1], still], axis=1)
    ease: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda t: t * t * (3 - 2 * t)  # noqa: E731
    x = np.linspace(0, float(rng.uniform(-0.3, 0.3)) * WIDTH, n)
    if n >= 16 and rng.random() < 0.6:
        length = int(rng.integers(4, 13))
        first = int(rng.integers(2, n - length - 1))
        x = x + float(rng.choice([-1, 1])) * float(rng.uniform(0.5, 0.95)) * WIDTH * ease(
            np.clip((np.arange(n) - first) / length, 0, 1)
        )
    x = x + WIDTH - (x.min() + x.max()) / 2
    speed = np.abs(np.gradient(x)) if n > 1 else np.zeros(n)
    for k in range(n):
        blurred = cv2.blur(wide, (max(1, int(speed[k] / 2)), 1))
        yield np.asarray(
            cv2.getRectSubPix(blurred, (WIDTH, HEIGHT), (float(x[k]) + (WIDTH - 1) / 2, (HEIGHT - 1) / 2)), np.uint8
        )


def _passer(rng: np.random.Generator, clip: list[Pixels]) -> None:
    """Something large and dark crosses the picture in 5 to 10 frames, close to the camera."""
    length = int(rng.integers(5, 11))
    first = int(rng.integers(3, len(clip) - length - 2))
    width, grey = float(rng.uniform(0.4, 1.0)) * WIDTH, int(rng.integers(10, 90))
    left = bool(rng.random() < 0.5)
    columns = np.arange(WIDTH)[None, :, None]
    texture = cv2.GaussianBlur(rng.integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8), (31, 31), 8) + grey
    for k in range(length):
        centre = -width / 2 + (WIDTH + width) * (k + 0.5) / length
        centre = WIDTH - centre if left else centre
        cover = np.clip((width / 2 - np.abs(columns - centre)) / 12 + 0.5, 0, 1)
        clip[first + k] = (clip[first + k] * (1 - cover) + texture * cover).astype(np.uint8)


def _write(path: Path, pictures: list[Pixels], fps: Fraction, crf: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": str(crf), "g": "250", "bf": "3", "preset": "medium"}
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for k, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
