"""Errors of the tracker of drawn worlds against the truth: `python -m benchmarks.tracker DIR`.

DIR is a folder that `worldloom demo-footage DIR --world held-out --videos 200` drew. Every video is decoded as `encode`
does, at the sizes and the frame rate of `--buckets`, tracked, and compared with its truth. The last line is JSON:

- `background`, `camera`, `number`, `colours`, `kinds`: shares that are right, with how many could be judged.
- `position`: quantiles of the distance to the true centre in short sides of the frame. In a pan, x is relative.
- `placed`: share of the frames with at least `MIN_VISIBLE` of a shape in view in which it has a position.
- `radius`: mean and standard deviation of the relative error. `spin`: quantiles of the error in radians per second.
- `gravity`, `bounce`: fits over all clips, as metrics make them, and their relative errors.

With `--autoencoder WEIGHTS` the same after encoding and decoding by `causal` (`small` is what is shipped).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import cpu_s
from cluster.arrays import Float64Array, Pixels
from pipelines.scenes.clips import DrawnClip, read_clips
from pipelines.video.spans import FrameGrid
from training.autoencoders.causal import Causal
from training.evaluation.metric import Case, Clip, Expected, estimate
from training.evaluation.metrics.bounce import BounceSpeed
from training.evaluation.metrics.gravity import Gravity
from training.evaluation.tracker import BodyTrack, ClipTracks
from training.evaluation.truth import FileTruth, World, read_truth
from training.pixels import from_uint8
from training.sampling.coding import to_pixels

GRIDS = tuple(
    FrameGrid(8, frames, width, height)
    for frames in (17, 9)
    for width, height in ((96, 56), (88, 64), (72, 72), (56, 96))
)
"""Sizes of the recipe drawn-world."""
MIN_VISIBLE = 0.5
QUANTILES = (0.5, 0.95, 0.99)


@dataclass
class Errors:
    """Errors of the tracker over clips."""

    right: dict[str, list[bool]] = field(default_factory=dict)
    positions: list[float] = field(default_factory=list)
    placed: list[bool] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    spins: list[float] = field(default_factory=list)
    gravity: list[Sequence[Case]] = field(default_factory=list)
    bounce: list[Sequence[Case]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    cpu_s: float = 0.0

    def judge(self, name: str, is_right: bool, file: str, detail: object = "") -> None:
        """Count one judgement, and note a wrong one."""
        self.right.setdefault(name, []).append(is_right)
        if not is_right:
            self.faults.append(f"{file}: {name} {detail}".strip())

    def summary(self, world: World) -> dict[str, Any]:
        """Return the figures of the JSON line."""
        fits = {}
        for name, cases, true in (("gravity", self.gravity, world.gravity), ("bounce", self.bounce, world.bounce)):
            if (found := estimate(cases)) is not None:
                error = round(found.mean / true - 1, 4)
                fits[name] = {**_rounded(found._asdict()), "error": error}
        return {
            **{
                name: {"right": round(np.mean(values), 4), "judged": len(values)} for name, values in self.right.items()
            },
            "position": _quantiles(self.positions),
            "placed": round(float(np.mean(self.placed)), 4),
            "radius": {"bias": round(float(np.mean(self.radii)), 4), "std": round(float(np.std(self.radii)), 4)},
            "spin": _quantiles(self.spins),
            **fits,
            "cpu_s_per_clip": round(self.cpu_s / max(1, len(self.gravity)), 3),
        }


def measure_errors(
    clips: Iterable[DrawnClip], world: World, transform: Callable[[Pixels], Pixels] | None = None
) -> Errors:
    """Track clips, after a transformation of their frames if there is one, and compare the tracks with the truth."""
    errors = Errors()
    for drawn in clips:
        frames = drawn.frames_THWC if transform is None else transform(drawn.frames_THWC)
        clip = Clip(frames, drawn.fps, world, Expected.of(drawn.shot), drawn.room)
        errors.cpu_s += cpu_s(lambda clip=clip: clip.tracks)  # type: ignore[misc]
        assert clip.tracks is not None
        _compare(clip.tracks, drawn, errors)
        errors.gravity.append(Gravity().cases(clip))
        errors.bounce.append(BounceSpeed().cases(clip))
    return errors


def _compare(tracks: ClipTracks, drawn: DrawnClip, errors: Errors) -> None:
    shot, file = drawn.shot, drawn.file.file
    errors.judge("background", tracks.background == shot.background, file, tracks.background)
    if tracks.camera.is_seen:
        errors.judge("camera", tracks.camera.move == shot.camera, file, f"{tracks.camera.move} not {shot.camera}")
    visible_TB = _visible(drawn)
    errors.judge("number", len(tracks.bodies) == len(shot.bodies), file, [body.colour for body in tracks.bodies])
    for index, true in enumerate(shot.bodies):
        body = next((one for one in tracks.bodies if one.colour == true.colour), None)
        errors.judge("colours", body is not None, file, f"no {true.colour} {true.kind}")
        if body is None:
            continue
        if body.kind is not None:
            errors.judge("kinds", body.kind == true.kind, file, f"{true.colour} {body.kind} not {true.kind}")
        error_T = _position_errors(tracks, body, drawn.states_TB3[:, index].astype(np.float64))
        errors.positions += error_T[np.isfinite(error_T)].tolist()
        errors.placed += np.isfinite(error_T)[visible_TB[:, index] >= MIN_VISIBLE].tolist()
        if body.is_whole.any() and body.kind == true.kind:
            errors.radii.append(float(np.nanmedian(tracks.world_radius(body))) / true.radius - 1)
        if np.isfinite(body.spin) and body.kind == true.kind:
            angle_T = drawn.states_TB3[:, index, 2]
            errors.spins.append(abs(body.spin - float(angle_T[-1] - angle_T[0]) * drawn.fps / (len(angle_T) - 1)))


def _position_errors(tracks: ClipTracks, body: BodyTrack, state_T3: Float64Array) -> Float64Array:
    """Return the distance to the true centre in each frame; in a pan, x is compared up to a constant."""
    error_T2 = tracks.world_xy(body) - state_T3[:, :2]
    if tracks.camera.pan and np.isfinite(error_T2).any():
        error_T2[:, 0] -= np.nanmedian(error_T2[:, 0])
    return np.hypot(error_T2[:, 0], error_T2[:, 1])


def _visible(drawn: DrawnClip) -> Float64Array:
    """Return the share of each body `[T, B]` inside the frame, as if it were its bounding box."""
    height, width = drawn.frames_THWC.shape[1:3]
    zoom_T1 = drawn.cameras_T3[:, 2:]
    shares = np.ones(drawn.states_TB3.shape[:2])
    radii_B = np.array([body.radius for body in drawn.shot.bodies])
    for axis, side in ((0, width), (1, height)):
        centre_TB = (drawn.states_TB3[:, :, axis] - drawn.cameras_T3[:, axis, None]) * zoom_T1
        half, reach_TB = side / drawn.room.unit_px / 2, radii_B * zoom_T1
        inside_TB = np.minimum(centre_TB + reach_TB, half) - np.maximum(centre_TB - reach_TB, -half)
        shares *= np.clip(inside_TB / (2 * reach_TB), 0, 1)
    return shares


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    found = np.quantile(values, QUANTILES).tolist() if values else [math.nan] * len(QUANTILES)
    return {f"p{round(100 * level)}": round(value, 4) for level, value in zip(QUANTILES, found, strict=True)}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _autoencoder(weights: str) -> Callable[[Pixels], Pixels]:
    autoencoder = Causal(weights=weights).open()

    @torch.inference_mode()
    def roundtrip(frames_THWC: Pixels) -> Pixels:
        video = from_uint8(torch.from_numpy(frames_THWC.copy())).permute(3, 0, 1, 2)[None]
        made: Pixels = to_pixels(autoencoder.decode(autoencoder.encode(video)))[0].numpy()
        return made

    return roundtrip


def _videos(folder: str, n: int, files: Sequence[FileTruth]) -> Iterator[DrawnClip]:
    videos = [file for file in files if file.shots[0].end_frame > 1]
    return read_clips(folder, videos[:n], GRIDS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument(
        "--autoencoder", metavar="WEIGHTS", help="also encode and decode by `causal` with these weights"
    )
    arguments = parser.parse_args()
    world, files = read_truth(arguments.folder)
    transform = _autoencoder(arguments.autoencoder) if arguments.autoencoder else None
    errors = measure_errors(_videos(arguments.folder, arguments.clips, files), world, transform)
    for fault in errors.faults:
        print(fault)
    print(json.dumps({"clips": len(errors.gravity), **errors.summary(world)}))


if __name__ == "__main__":
    main()
