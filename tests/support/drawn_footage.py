"""Drawn stand-ins for the private footage of tests: the same names, codecs, sizes, rates, cuts and camera motions.

Textures are blots of all sizes, as in photographs. Labels that tests have for the private files hold for these too.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import overload

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cluster.arrays import Pixels, UInt8Array
from tests.support.images import blots
from tests.support.paths import ROOT
from tests.support.videos import encode

LABELS = ROOT / "tests" / "pipelines" / "video" / "sintel_labels.json"
FACE = ROOT / "tests" / "photographs" / "astronaut.jpg"
FAST = {"preset": "ultrafast", "crf": "18"}
FULL_RANGE, BT709 = 2, 1
"""Codes of FFmpeg for a full range of values and for BT.709."""
MARGIN = 1.6
"""Long side of a texture over that of the frame."""

View = tuple[float, float, float]
"""Position of a camera, in long sides of the frame to the right and down, and its zoom."""
Camera = Callable[[float], View]
"""A function of the seconds since the start of a shot."""


def still(_: float) -> View:
    """Return the view of a camera that does not move."""
    return 0.0, 0.0, 1.0


def handheld(time_s: float) -> View:
    """Return the view of a camera that shakes, more and less in turn."""
    amount = 0.006 * (1.3 + math.sin(2.1 * time_s))
    return amount * math.sin(9 * time_s), amount * math.cos(7.3 * time_s), 1.0


def panning(time_s: float) -> View:
    """Return the view of a camera that pans right, faster and slower in turn."""
    return 0.05 * time_s + 0.02 * math.sin(2.5 * time_s), 0.0, 1.0


def tilting(time_s: float) -> View:
    """Return the view of a camera that tilts down, faster and slower in turn."""
    return 0.0, 0.2 * time_s + 0.025 * math.sin(7 * time_s) - 0.1, 1.0


def wide(time_s: float) -> View:
    """Return the view of a shaking camera that is further away and off the centre."""
    x, y, _ = handheld(time_s)
    return x + 0.15, y - 0.05, 0.8


def left_corner(time_s: float) -> View:
    """Return the view of a shaking camera on the upper left corner."""
    x, y, _ = handheld(time_s)
    return x - 0.3, y - 0.2, 1.5


def right_corner(time_s: float) -> View:
    """Return the view of a shaking camera on the lower right corner."""
    x, y, _ = handheld(time_s)
    return x + 0.3, y + 0.2, 1.5


@dataclass(frozen=True)
class Shot:
    """A shot of n frames: a texture, a photograph or a black card, a camera, and letters over it."""

    seed: int
    n: int
    camera: Camera = still
    title: str = ""
    face: bool = False
    card: bool = False
    mirrored: bool = False


@dataclass(frozen=True)
class Fade:
    """A fade through a grey of `level`, plain from frame `solid` to `solid_end`."""

    start: int
    end: int
    solid: int
    solid_end: int
    level: int

    def share(self, k: int) -> float:
        """Return the share of the grey in frame k."""
        if k < self.solid:
            return min(1.0, (k - self.start + 1) / (self.solid - self.start - 1))
        return 1.0 if k < self.solid_end else (self.end - k) / (self.end - self.solid_end + 1)


@dataclass(frozen=True)
class Film(Sequence[Pixels]):
    """A sequence of frames `[height, width, 3]` that are drawn when they are read."""

    width: int
    height: int
    fps: float
    shots: tuple[Shot, ...]
    fades: tuple[Fade, ...] = ()
    crop: tuple[int, int] | None = None
    """First line of the image and the line after it; black bars cover the others."""
    noise: float = 0.0
    """Standard deviation of the noise, in 8-bit values."""

    def __len__(self) -> int:
        return sum(shot.n for shot in self.shots)

    @overload
    def __getitem__(self, k: int) -> Pixels: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, k: int | slice) -> Pixels | Sequence[Pixels]:
        if isinstance(k, slice):
            return [self[index] for index in range(*k.indices(len(self)))]
        starts = [0, *itertools.accumulate(shot.n for shot in self.shots)]
        if not 0 <= k < len(self):
            raise IndexError(k)
        index = next(index for index, start in enumerate(starts[1:]) if k < start)
        frame = self._view(self.shots[index], (k - starts[index]) / self.fps)
        for fade in self.fades:
            if fade.start <= k < fade.end:
                frame = cv2.addWeighted(frame, 1 - fade.share(k), np.full_like(frame, fade.level), fade.share(k), 0)
        if self.noise:
            rng = np.random.default_rng([k, self.width])
            frame = np.clip(frame + rng.normal(0, self.noise, frame.shape), 0, 255).astype(np.uint8)
        if self.crop is not None:
            frame[: self.crop[0]] = frame[self.crop[1] :] = 0
        return frame

    def _view(self, shot: Shot, time_s: float) -> Pixels:
        x, y, zoom = shot.camera(time_s)
        image = _face(self.width) if shot.face else _texture(shot.seed, self.width, self.height)
        image = image[:, ::-1] if shot.mirrored else image
        long = max(self.width, self.height)
        centre = np.array([image.shape[1] / 2 + x * long, image.shape[0] / 2 + y * long])
        matrix = np.eye(2, 3) / zoom
        matrix[:, 2] = centre - np.array([self.width, self.height]) / 2 / zoom
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        view = cv2.warpAffine(image, matrix, (self.width, self.height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        if shot.card:
            view = np.zeros_like(view)
        if shot.title:
            letters = _title(shot.title, self.width, self.height)
            view[letters > 0] = 255
        return np.asarray(view, np.uint8)


@functools.lru_cache(maxsize=4)
def _texture(seed: int, width: int, height: int) -> Pixels:
    """Draw blots in luma and, weaker, in chroma; twice as large, so that a camera can move."""
    size = (round(MARGIN * width), round(MARGIN * height))
    planes = [cv2.resize(blots(3 * seed + k, 640, 640), size, interpolation=cv2.INTER_CUBIC) for k in range(3)]
    ycc = np.stack([planes[0], *(128 + (plane.astype(float) - 128) * 0.3 for plane in planes[1:])], -1)
    return np.asarray(cv2.cvtColor(np.clip(ycc, 0, 255).astype(np.uint8), cv2.COLOR_YCrCb2RGB), np.uint8)


@functools.lru_cache(maxsize=4)
def _face(width: int) -> Pixels:
    """Return the photograph, as wide as the frame and a margin."""
    with Image.open(FACE) as image:
        scale = MARGIN * width / image.width
        return np.asarray(image.resize((round(image.width * scale), round(image.height * scale))).convert("RGB"))


@functools.lru_cache(maxsize=4)
def _title(text: str, width: int, height: int) -> UInt8Array:
    """Draw letters in the lower half, as a mask `[height, width]`."""
    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(width / (0.6 * len(text)))
    pen.text((width / 2, height * 0.75), text, fill=255, font=font, anchor="mm")
    return np.asarray(image) // 255


def trailer() -> Film:
    """Return a film in letterbox with the cuts and fades of the labels that were made by eye."""
    labels = json.loads(LABELS.read_text())
    edges, fades = [0], []
    for label in labels["boundaries"]:
        if label["kind"] == "cut":
            edges.append(label["start_frame"])
            continue
        solid, solid_end = label["solid_frames"]
        level = 235 if label["through"] == "white" else 0
        fades.append(Fade(label["start_frame"], label["end_frame"], solid, solid_end, level))
        edges.append(solid_end)
    edges.append(labels["frames"])
    cameras = (panning, handheld, still)
    shots = [Shot(40 + k, end - start, cameras[k % 3]) for k, (start, end) in enumerate(itertools.pairwise(edges))]
    # The second fade ends in a title card that is shown at once, with no black frame before it.
    shots[2] = Shot(42, shots[2].n, title="FROM THE MAKERS", card=True)
    return Film(854, 480, labels["fps"], tuple(shots), tuple(fades), crop=(58, 422))


def films() -> dict[str, Film]:
    """Return the films by file name."""
    talk = "WHAT THEY SAID NEXT"
    phone = Film(176, 144, 30000 / 1001, (Shot(5, 120, handheld, face=True),), noise=3)
    return {
        "av1_640x360.mkv": Film(640, 360, 25, (Shot(1, 50, panning),)),
        "bt709_full_range_720p.mp4": Film(1280, 720, 30, (Shot(2, 30, panning),)),
        "carphone_distorted.mp4": phone,
        "carphone_pristine.mp4": phone,
        "corrupted.mp4": Film(320, 180, 10, (Shot(3, 10),)),
        "hevc_10bit_200x200.mp4": Film(200, 200, 30, (Shot(4, 30, handheld),)),
        "hydraulic_press_832x480.mp4": Film(832, 480, 16, (Shot(6, 114),), noise=1),
        "motorcycle_2160p.mp4": Film(3840, 2160, 8, (Shot(7, 24, panning),)),
        "mpeg4_320x240.avi": Film(320, 240, 25, (Shot(8, 164, wide, face=True, mirrored=True),)),
        "mpeg4_832x480.mp4": Film(832, 480, 30, (Shot(9, 81),), noise=1),
        "nasa_320x180.mp4": Film(
            320,
            180,
            25,
            (
                Shot(10, 150, left_corner, face=True, mirrored=True),
                Shot(11, 175, right_corner, face=True, mirrored=True),
            ),
        ),
        "rotated_90.mov": Film(568, 320, 30, (Shot(12, 3, panning),)),
        "short_1s_340x256.mp4": Film(340, 256, 30, (Shot(13, 32, tilting),)),
        "sintel_trailer_30s.mp4": trailer(),
        "subtitled_portrait_362x640.mp4": Film(362, 640, 24, (Shot(14, 240, handheld, "AND THEN", face=True),)),
        "talk_640x360.mp4": Film(
            640, 360, 24, (Shot(15, 144, handheld, talk), Shot(16, 93, still, talk), Shot(17, 45, handheld, talk))
        ),
        "talk_portrait_480x640.mp4": Film(480, 640, 24, (Shot(18, 120, handheld, "AND THEN"),)),
    }


def draw_footage(folder: Path) -> None:
    """Draw all files into a folder. It takes half a minute."""
    for name, film in films().items():
        _write(folder / name, film)


def _write(path: Path, film: Film) -> None:
    """Encode a film as the private file of the same name is."""
    codec, pixel_format, options = "libx264", "yuv420p", FAST
    color_range, rotation_deg = None, 0
    if path.name.startswith("av1"):
        codec, options = "libsvtav1", {"preset": "11", "crf": "30"}
    elif path.name.startswith("hevc"):
        codec, options = "libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}
        pixel_format = "yuv420p10le"
    elif path.name.startswith("mpeg4"):
        codec, options = "mpeg4", {"qscale": "3", "bf": "2"}
    elif path.name.startswith("bt709"):
        color_range, pixel_format = FULL_RANGE, "yuvj420p"
    elif path.name == "carphone_distorted.mp4":
        options = {"preset": "fast", "crf": "42"}
    elif path.suffix == ".mov":
        rotation_deg = -90
    rate = Fraction(film.fps).limit_denominator(1001)
    encode(
        path,
        film,
        time_base=1 / rate,
        codec=codec,
        options=options,
        pixel_format=pixel_format,
        color_range=color_range,
        rotation_deg=rotation_deg,
    )
    if path.stem == "corrupted":
        path.write_bytes(path.read_bytes().replace(b"moov", b"gone"))
