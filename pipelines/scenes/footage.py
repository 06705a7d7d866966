"""Demo footage: short drawn videos and images with captions, known cuts, and a few defects of real collections."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cluster.arrays import Pixels
from cluster.storage import write_bytes
from cluster.telemetry import ProgressBar
from pipelines.scenes.scene import (
    ACTIONS,
    CAMERA_MOVES,
    Scene,
    body_name,
    choose_background,
    choose_bodies,
    join_names,
    render,
    still_caption,
)
from pipelines.video.still_images import encode_jpeg
from training.sampling.media import write_mp4, write_png

Join = Literal["cut", "dissolve", "fade"]
Trouble = Literal["title_card", "frozen", "black", "copy", "recompressed", "truncated"]

MTIME_S = 1_767_225_600
"""Modification time of every file, 2026-01-01 in UTC: a source's identity includes it, so footage drawn twice is the
same."""

TRUTH_FILE = "truth.json"
SIZES = ((256, 144), (144, 256), (192, 192))
RATES = (24, 30, 12, 25, 24, 15)
DISSOLVE_S = 0.8
FADE_S = 0.5
"""Seconds of the fade to black, and of the fade from black after it."""
TRUNCATED_SHARE = 0.55
"""Share of a truncated file's bytes that is kept."""
N_IMAGES = 4


@dataclass(frozen=True)
class _Plan:
    """Plan of one file. The first plans show the most, because they are used when few videos are asked for."""

    join: Join = "cut"
    trouble: Trouble | None = None
    copy_of: int | None = None
    """Index of the file that a copy copies."""


_PLANS = (
    _Plan(),
    _Plan(),
    _Plan(join="dissolve"),
    _Plan(),
    _Plan(trouble="copy", copy_of=0),
    _Plan(trouble="truncated"),
    _Plan(join="fade"),
    _Plan(trouble="title_card"),
    _Plan(trouble="recompressed", copy_of=1),
    _Plan(trouble="frozen"),
    _Plan(trouble="black"),
)
_PLAIN = _Plan()


@dataclass(frozen=True)
class Transition:
    """A transition between two shots. Frames `start_frame` to `end_frame` (exclusive) mix both; a cut is at `frame`."""

    kind: Join
    frame: int
    time_s: float
    start_frame: int
    end_frame: int


@dataclass
class _Film:
    """Frames of a file, and its shots and transitions as they are written to `truth.json`."""

    frames: list[Pixels] = field(default_factory=list)
    shots: list[dict[str, Any]] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)


def make_footage(
    folder: str | Path, videos: int = 12, seed: int = 0, progress: ProgressBar | None = None
) -> dict[str, Any]:
    """Draw `videos` videos and a few images into a folder, and return the ground truth.

    The ground truth is also written to `truth.json` there.

    The same arguments give the same bytes on the same machine. Of 12 videos three are faulty copies (exact,
    recompressed, truncated); three have a title card, a frozen and a black shot; one joins its shots with a dissolve,
    one with a fade through black. All others are shots of 2 to 4 s with hard cuts. `clip_000.json` captions
    `clip_000.mp4`.

    Ground truth: `videos` (file, width, height, fps, n_frames, duration_s, caption, trouble, copy_of, shots with
    frames `start_frame` to `end_frame` exclusive and a caption, transitions) and `images` (file, width, height,
    caption). Raises `ValueError` if `videos` is below 1.
    """
    if videos < 1:
        raise ValueError(f"videos={videos}: it must be at least 1")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {"seed": seed, "videos": [], "images": []}
    for index in range(videos):
        plan = _PLANS[index] if index < len(_PLANS) else _PLAIN
        truth["videos"].append(_make_video(target, index, plan, seed, truth["videos"]))
        if progress is not None:
            progress.advance(1, note=truth["videos"][-1]["file"])
    for index in range(N_IMAGES):
        truth["images"].append(_make_image(target, index, seed))
    _write(target / TRUTH_FILE, (json.dumps(truth, indent=1) + "\n").encode())
    return truth


def _make_video(folder: Path, index: int, plan: _Plan, seed: int, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    path = folder / f"clip_{index:03d}.mp4"
    source = index if plan.copy_of is None else plan.copy_of
    width, height = SIZES[source % len(SIZES)]
    fps = RATES[source % len(RATES)]
    if plan.trouble == "copy":
        assert plan.copy_of is not None
        entry = before[plan.copy_of] | {"file": path.name, "trouble": "copy", "copy_of": before[plan.copy_of]["file"]}
        _write(path, (folder / before[plan.copy_of]["file"]).read_bytes())
        _write_captions(path, entry)
        return entry
    film, caption = _film(source, plan, seed, width, height, fps)
    crf = 20
    if plan.trouble == "recompressed":
        width, height, crf = width * 3 // 4 // 2 * 2, height * 3 // 4 // 2 * 2, 32
        film.frames = [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) for frame in film.frames
        ]
    write_mp4(str(path), film.frames, fps, crf=crf)
    if plan.trouble == "truncated":
        data = path.read_bytes()
        _write(path, data[: int(TRUNCATED_SHARE * len(data))])
    _stamp(path)
    entry = {
        "file": path.name,
        "width": width,
        "height": height,
        "fps": fps,
        "n_frames": len(film.frames),
        "duration_s": len(film.frames) / fps,
        "caption": caption,
        "trouble": plan.trouble,
        "copy_of": None if plan.copy_of is None else before[plan.copy_of]["file"],
        "shots": film.shots,
        "transitions": [asdict(transition) for transition in film.transitions],
    }
    _write_captions(path, entry)
    return entry


def _write_captions(path: Path, entry: dict[str, Any]) -> None:
    """Write the sidecar of a video: a caption of the whole and one per shot."""
    shots = [
        {
            "start_s": shot["start_frame"] / entry["fps"],
            "end_s": shot["end_frame"] / entry["fps"],
            "caption": shot["caption"],
        }
        for shot in entry["shots"]
    ]
    _write(
        path.with_suffix(".json"), (json.dumps({"caption": entry["caption"], "shots": shots}, indent=1) + "\n").encode()
    )


def _film(index: int, plan: _Plan, seed: int, width: int, height: int, fps: int) -> tuple[_Film, str]:
    """Return the frames of a file and its caption; a recompressed copy has those of its original."""
    rng = np.random.default_rng([seed, index])
    bodies = choose_bodies(rng, 1 + (index % 4 != 3))
    film = _Film()
    clauses: list[str] = []
    background: str | None = None
    for number in range(2 + index % 3 if plan.join == "cut" else 2):
        background = choose_background(rng, bodies, background)
        # Neighbouring files and shots differ in the action and in the motion of the camera.
        action, camera = (
            ACTIONS[(index + number) % len(ACTIONS)],
            CAMERA_MOVES[(index + 2 * number) % len(CAMERA_MOVES)],
        )
        scene = Scene(action, camera, background, bodies, float(rng.integers(4, 8)) / 2)
        clauses.append(scene.clause)
        frames = render(scene, width, height, fps, (seed, index, number))
        _append(film, frames, scene.caption, plan.join if number else "cut", fps)
        if number == 0:
            _append_trouble(film, plan, scene, width, height, fps)
    names = join_names([body_name(body) for body in bodies])
    story = ". Then ".join(clauses)
    return film, f"{names[0].upper()}{names[1:]}: {story}."


def _append_trouble(film: _Film, plan: _Plan, scene: Scene, width: int, height: int, fps: int) -> None:
    """Add the shot with the plan's defect, which recipes filter out; other plans add none."""
    n = round(2.5 * fps)
    if plan.trouble == "title_card":
        _append(film, [_title_card(width, height)] * n, "A title card: white letters on black.", "cut", fps)
    elif plan.trouble == "black":
        _append(film, [np.zeros((height, width, 3), np.uint8)] * n, "A black picture.", "cut", fps)
    elif plan.trouble == "frozen":
        other = choose_background(np.random.default_rng(0), scene.bodies, scene.background)
        still = render(Scene("glide", "still", other, scene.bodies, 0.5), width, height, fps, (1,))[0]
        _append(film, [still] * n, "A frozen picture.", "cut", fps)


def _append(film: _Film, frames: list[Pixels], caption: str, join: Join, fps: int) -> None:
    """Add a shot after those that are there, with a transition of this kind."""
    start = len(film.frames)
    if start and join == "dissolve":
        n = round(DISSOLVE_S * fps)
        start -= n
        mixed = [
            _mix(old, new, (k + 1) / (n + 1))
            for k, (old, new) in enumerate(zip(film.frames[start:], frames[:n], strict=True))
        ]
        film.frames[start:] = [*mixed, *frames[n:]]
        film.transitions.append(Transition("dissolve", start + n // 2, (start + n // 2) / fps, start, start + n))
        film.shots[-1]["end_frame"] = start = start + n // 2
    elif start and join == "fade":
        n = round(FADE_S * fps)
        black = np.zeros_like(frames[0])
        for k in range(n):
            film.frames[start - n + k] = _mix(film.frames[start - n + k], black, (k + 1) / n)
        film.frames += [_mix(black, new, k / n) for k, new in enumerate(frames[:n])] + frames[n:]
        film.transitions.append(Transition("fade", start, start / fps, start - n, start + n))
    else:
        film.frames += frames
        if start:
            film.transitions.append(Transition("cut", start, start / fps, start, start))
    film.shots.append({"start_frame": start, "end_frame": len(film.frames), "caption": caption})


def _mix(old: Pixels, new: Pixels, share: float) -> Pixels:
    return (old * (1 - share) + new * share + 0.5).astype(np.uint8)


def _title_card(width: int, height: int) -> Pixels:
    image = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(image)
    for line, text in enumerate(("A FILM BY", "NOBODY", "AT ALL")):
        font = ImageFont.load_default(height * (0.14 if width >= height else 0.09))
        pen.text((width / 2, height * (0.25 + 0.25 * line)), text, fill="white", font=font, anchor="mm")
    return np.asarray(image)


def _make_image(folder: Path, index: int, seed: int) -> dict[str, Any]:
    """Draw a still image of a scene, twice the size of a video, and return its entry in the ground truth."""
    rng = np.random.default_rng([seed, 1_000_000 + index])
    width, height = (2 * side for side in SIZES[index % len(SIZES)])
    bodies = choose_bodies(rng, 1 + index % 3)
    background = choose_background(rng, bodies, None)
    scene = Scene("glide", "still", background, bodies, 1.0)
    pixels = render(scene, width, height, 1.0, (seed, 1_000_000 + index))[0]
    path = folder / f"photo_{index:03d}.{'png' if index % 2 == 0 else 'jpg'}"
    if path.suffix == ".png":
        write_png(str(path), pixels)
        _stamp(path)
    else:
        _write(path, encode_jpeg(pixels, quality=92))
    caption = still_caption(bodies, background)
    _write(path.with_suffix(".txt"), (caption + "\n").encode())
    return {"file": path.name, "width": width, "height": height, "caption": caption}


def _write(path: Path, data: bytes) -> None:
    write_bytes(str(path), data)
    _stamp(path)


def _stamp(path: Path) -> None:
    os.utime(path, (MTIME_S, MTIME_S))
