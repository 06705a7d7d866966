"""Edited videos with known transitions: footage of single shots, joined at random and encoded with libx264.

Everything follows from a seed. Footage is spans of real videos without a cut (read off contact sheets), scenes rendered
by `pipelines.scenes`, and camera moves over large stills, so that whip pans occur. Shots contain events that detectors
mistake for cuts: flashes, whip pans, and dark objects that pass close to the camera.

Detectors were fitted to the videos of some seeds, so a seed must keep its video: the order of random draws must stay.
"""

from __future__ import annotations

from collections.abc import Iterator
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

from cluster.arrays import Float64Array, Pixels, UInt8Array
from pipelines.scenes.scene import ACTIONS, CAMERA_MOVES, Scene, choose_background, choose_bodies, render
from pipelines.video.decode import probe, read_frames

Kind = Literal["cut", "dissolve", "fade"]

WIDTH, HEIGHT = 480, 270

UNCUT_SPANS: dict[str, tuple[tuple[int, int], ...]] = {
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
"""Spans of frames without a cut (start, exclusive end) by file. No span follows itself in an edit."""
ONE_SHOT = frozenset({"talk_portrait_480x640.mp4"})
"""Files whose spans are parts of one shot; they do not follow each other either."""

PURE_S = (0.3, 4.0)
"""Shortest and longest unmixed part of a shot in seconds."""
MIN_PURE_S = 0.5
"""Shortest unmixed part in seconds next to a gradual transition, whose ends are hard to tell otherwise."""
DISSOLVE, FADE, HOLD, FLASH = (6, 30), (6, 24), (0, 12), (1, 3)
"""Fewest and most frames of a dissolve, of a fade in each direction, of the plain colour held between, of a flash."""


@dataclass(frozen=True)
class Label:
    """A transition of the frames `start` to `end` (exclusive), which are mixed or plain.

    `end` is the first unmixed frame of the next shot. For a cut both are that frame.
    """

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True)
class Edit:
    """An edited video, its transitions, and the first frame of each flash."""

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
    """Write `<folder>/edit_<seed>.mp4` from the footage in `videos`, about 30 s at 480 x 270."""
    rng = np.random.default_rng([2026, seed])
    fps = Fraction((24, 25, 30, Fraction(30000, 1001), Fraction(24000, 1001))[int(rng.integers(5))])
    timeline = _timeline(rng, float(fps), videos, shots)
    if rng.random() < 0.2:
        bar = int(rng.integers(20, 40))
        for frame in timeline.frames:
            frame[:bar] = frame[HEIGHT - bar :] = 0
    path = folder / f"edit_{seed}.mp4"
    _write(path, timeline.frames, fps, crf=int(rng.integers(18, 31)))
    return Edit(path, fps, len(timeline.frames), tuple(timeline.labels), tuple(timeline.flashes))


def _timeline(rng: np.random.Generator, fps: float, videos: Path, shots: int) -> _Timeline:
    """Draw all shots and join them; `n_in` and `n_out` are the mixed frames at the start and end of a shot."""
    out = _Timeline()
    joins = [str(rng.choice(["cut", "dissolve", "fade"], p=[0.6, 0.22, 0.18])) for _ in range(shots - 1)]
    ends = ["fade" if rng.random() < 0.25 else "none" for _ in range(2)]
    previous = ""
    dissolve = 0
    for k in range(shots):
        into, out_of = ([ends[0], *joins][k], [*joins, ends[1]][k])
        gradual = {into, out_of} & {"dissolve", "fade"}
        shortest = max(PURE_S[0], MIN_PURE_S) if gradual else PURE_S[0]
        n_pure = round(fps * float(np.exp(rng.uniform(np.log(shortest), np.log(PURE_S[1])))) + 0.5)
        n_in = dissolve if into == "dissolve" else int(rng.integers(FADE[0], FADE[1] + 1)) if into == "fade" else 0
        n_out = int(rng.integers(DISSOLVE[0], DISSOLVE[1] + 1)) if out_of == "dissolve" else 0
        n_out = int(rng.integers(FADE[0], FADE[1] + 1)) if out_of == "fade" else n_out
        previous, clip = _shot(rng, videos, n_in + n_pure + n_out, previous, fps)
        _flash(rng, clip, n_in, n_in + n_pure, len(out.frames) - (n_in if into == "dissolve" else 0), out)
        _append(out, clip, into, n_in)
        if out_of == "fade":
            colour = _fade_colour(rng)
            hold = int(rng.integers(HOLD[0], HOLD[1] + 1))
            for i in range(n_out):
                out.frames[-n_out + i] = _mix(out.frames[-n_out + i], colour, (i + 1) / n_out)
            out.frames += [colour.copy() for _ in range(hold)]
            if k == shots - 1:
                out.labels.append(Label("fade", len(out.frames) - n_out - hold, len(out.frames)))
            else:
                out.labels.append(Label("fade", len(out.frames) - n_out - hold, -1))
        dissolve = n_out if out_of == "dissolve" else 0
    return out


def _append(out: _Timeline, clip: list[Pixels], into: str, n_in: int) -> None:
    """Append a shot, whose first `n_in` frames are mixed by the transition `into` it."""
    if into == "cut":
        out.labels.append(Label("cut", len(out.frames), len(out.frames)))
        out.frames += clip
    elif into == "none":
        out.frames += clip
    elif into == "dissolve":
        start = len(out.frames) - n_in
        for i in range(n_in):
            out.frames[start + i] = _mix(out.frames[start + i], clip[i], (i + 1) / (n_in + 1))
        out.frames += clip[n_in:]
        out.labels.append(Label("dissolve", start, start + n_in))
    else:
        colour = out.frames[-1].copy() if out.frames else np.zeros_like(clip[0])
        start = out.labels.pop().start if out.frames else 0
        out.frames += [_mix(colour, frame, (i + 1) / (n_in + 1)) for i, frame in enumerate(clip[:n_in])]
        out.frames += clip[n_in:]
        out.labels.append(Label("fade", start, len(out.frames) - len(clip) + n_in))


def _fade_colour(rng: np.random.Generator) -> Pixels:
    """Return a plain frame: black in 60%, white in 20%, and any colour in 20%."""
    choice = rng.random()
    if choice < 0.6:
        rgb = [0, 0, 0]
    elif choice < 0.8:
        rgb = [255, 255, 255]
    else:
        rgb = rng.integers(0, 256, 3).tolist()
    return np.full((HEIGHT, WIDTH, 3), rgb, np.uint8)


def _mix(old: Pixels, new: Pixels, share: float) -> Pixels:
    """Return `share` of the new frame over the rest of the old one."""
    return np.asarray(cv2.addWeighted(old, 1 - share, new, share, 0), np.uint8)


def _flash(rng: np.random.Generator, clip: list[Pixels], start: int, end: int, position: int, out: _Timeline) -> None:
    """Brighten 1 to 3 frames of one in four shots, at least 6 frames inside the unmixed part (`start` to `end`).

    `position` is the frame of the timeline at which the clip begins.
    """
    n = int(rng.integers(FLASH[0], FLASH[1] + 1))
    if end - start < 16 + n or rng.random() > 0.25:
        return
    first = int(rng.integers(start + 6, end - n - 6))
    white = np.full_like(clip[0], 255)
    for i in range(n):
        clip[first + i] = _mix(clip[first + i], white, float(rng.uniform(0.4, 1.0)))
    out.flashes.append(position + first)


def _shot(rng: np.random.Generator, videos: Path, n: int, previous: str, fps: float) -> tuple[str, list[Pixels]]:
    """Return the name of the footage of one shot, other than `previous`, and `n` frames of it."""
    while True:
        choice = rng.random()
        if choice < 0.12:
            return "rendered", _rendered(rng, n, fps)
        names = [name for name in UNCUT_SPANS if (videos / name).is_file()]
        if not names:
            return "rendered", _rendered(rng, n, fps)
        name = str(rng.choice(names))
        start, end = UNCUT_SPANS[name][int(rng.integers(len(UNCUT_SPANS[name])))]
        # Different shots of a film may follow each other, spans of one shot may not.
        footage = name if name in ONE_SHOT else f"{name}:{start}"
        if footage == previous:
            continue
        frames = [
            np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
            for data in _jpeg_frames(videos / name)[start:end]
        ]
        if choice > 0.8:
            return footage, list(_camera_move(rng, frames[int(rng.integers(len(frames)))], n))
        step = 2 if len(frames) >= 2 * n and rng.random() < 0.3 else 1
        if len(frames) < n * step:
            # Forwards and backwards: continuous motion, and no cut at the seam.
            frames = frames + frames[-2:0:-1]
            frames = frames * -(-n // len(frames))
            step = 1
        first = int(rng.integers(len(frames) - n * step + 1))
        clip = [frame.copy() for frame in frames[first : first + n * step : step]]
        if rng.random() < 0.5:
            clip = [np.ascontiguousarray(frame[:, ::-1]) for frame in clip]
        if rng.random() < 0.25:
            # A dim shot: the differences that tell shots apart are small in the dark.
            brightness = float(rng.uniform(0.25, 0.6))
            clip = [np.asarray(cv2.convertScaleAbs(frame, alpha=brightness), np.uint8) for frame in clip]
        if n >= 20 and rng.random() < 0.15:
            _passing_object(rng, clip)
        return footage, clip


@cache
def _jpeg_frames(path: Path) -> tuple[UInt8Array, ...]:
    """Return all frames as JPEG files of 480 x 270; as pixels, all footage would take 1 GB."""
    return tuple(
        np.asarray(cv2.imencode(".jpg", _crop(frame)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 96])[1], np.uint8)
        for _, frame in read_frames(str(path), *_cover_size(path))
    )


def _cover_size(path: Path) -> tuple[int, int]:
    """Return the size that covers 480 x 270 with the aspect of the video."""
    info = probe(str(path))
    scale = max(WIDTH / info.width, HEIGHT / info.height)
    return max(WIDTH, round(info.width * scale)), max(HEIGHT, round(info.height * scale))


def _crop(frame: Pixels) -> Pixels:
    y, x = (frame.shape[0] - HEIGHT) // 2, (frame.shape[1] - WIDTH) // 2
    return frame[y : y + HEIGHT, x : x + WIDTH]


def _rendered(rng: np.random.Generator, n: int, fps: float) -> list[Pixels]:
    """Return `n` frames of a random scene."""
    bodies = choose_bodies(rng, int(rng.integers(1, 3)))
    action, move = ACTIONS[int(rng.integers(len(ACTIONS)))], CAMERA_MOVES[int(rng.integers(len(CAMERA_MOVES)))]
    scene = Scene(action, move, choose_background(rng, bodies, None), bodies, (n + 0.5) / fps)
    frames = render(scene, WIDTH, HEIGHT, fps, (int(rng.integers(1 << 30)),))
    missing = [frames[-1].copy() for _ in range(n - len(frames))]
    return [np.ascontiguousarray(frame) for frame in frames[:n]] + missing


def _camera_move(rng: np.random.Generator, still: Pixels, n: int) -> Iterator[Pixels]:
    """Yield frames of a camera that drifts over a wide still, mirrored on to both sides.

    60% of those of 16 frames and more have a whip pan of 4 to 12 frames, blurred as in a camera.
    """
    wide = np.concatenate([still, still[:, ::-1], still], axis=1)
    x = np.linspace(0, float(rng.uniform(-0.3, 0.3)) * WIDTH, n)
    if n >= 16 and rng.random() < 0.6:
        length = int(rng.integers(4, 13))
        first = int(rng.integers(2, n - length - 1))
        distance = float(rng.choice([-1, 1])) * float(rng.uniform(0.5, 0.95)) * WIDTH
        x = x + distance * _smoothstep(np.clip((np.arange(n) - first) / length, 0, 1))
    x = x + WIDTH - (x.min() + x.max()) / 2
    speed = np.abs(np.gradient(x)) if n > 1 else np.zeros(n)
    for k in range(n):
        blurred = cv2.blur(wide, (max(1, int(speed[k] / 2)), 1))
        centre = (float(x[k]) + (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
        yield np.asarray(cv2.getRectSubPix(blurred, (WIDTH, HEIGHT), centre), np.uint8)


def _smoothstep(t: Float64Array) -> Float64Array:
    return t * t * (3 - 2 * t)


def _passing_object(rng: np.random.Generator, clip: list[Pixels]) -> None:
    """Draw a large dark object that crosses the frame in 5 to 10 frames, close to the camera."""
    length = int(rng.integers(5, 11))
    first = int(rng.integers(3, len(clip) - length - 2))
    width, grey = float(rng.uniform(0.4, 1.0)) * WIDTH, int(rng.integers(10, 90))
    to_left = bool(rng.random() < 0.5)
    columns = np.arange(WIDTH)[None, :, None]
    texture = cv2.GaussianBlur(rng.integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8), (31, 31), 8) + grey
    for k in range(length):
        centre = -width / 2 + (WIDTH + width) * (k + 0.5) / length
        centre = WIDTH - centre if to_left else centre
        cover = np.clip((width / 2 - np.abs(columns - centre)) / 12 + 0.5, 0, 1)
        clip[first + k] = (clip[first + k] * (1 - cover) + texture * cover).astype(np.uint8)


def _write(path: Path, frames: list[Pixels], fps: Fraction, crf: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": str(crf), "g": "250", "bf": "3", "preset": "medium"}
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for k, image in enumerate(frames):
            frame = VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
