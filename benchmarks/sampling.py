"""Tasks of sampling, measured beside real clips: joins, loops, edits, and what drifts in a long video.

    python -m benchmarks.sampling --model EXPORT --footage DIR [--seeds 32] [--tasks extend connect ...]
                                  [--steps 25] [--guidance 5] [--context-noise 0] [--long-seconds 60]
                                  [--frames FOLDER]

DIR is a folder that `worldloom demo-footage DIR --world held-out --videos 40` drew. Seed k takes the k-th clip of it
that fits the longest videos of the model, with its caption as the prompt. `--frames` writes a strip per task and seed.

A join is the mean absolute difference of the two frames there, divided by the median one of all neighbouring frames.
Joins always lie between two latent frames, so `group_join` divides by the median one at such places.

- `extend`, `backward`: the join with half of a clip. `connect`: both joins between the ends of a clip (`join` is the
  larger one), PSNR of the context as it is decoded beside that of the autoencoder alone, and whether the given frames
  are in the result unchanged.
- `loop`: a new loop's join of the last frame with the first one, and its motion, the mean difference of neighbouring
  frames, divided by that of a plain sample of the seed. `close`: the larger join of a clip that is closed.
- `sdedit-0.6`, `sdedit-0.7`, `sdedit-0.8`, `flowedit`: the caption has another colour for one shape. `changed`: the
  tracker finds a shape of that colour and none of the old one. `moved`: its median distance to the true position of
  the old one, as a share of the picture's side, along the axis where it is larger; `others_moved` that of other shapes.
- `long`: the largest join between windows; and at several times, over a second: `colour`, the difference of the
  background's colour to that of the first second in 8-bit values; `number` and `identity`, shares with the right number
  of shapes, and with the right kinds and colours.

Real clips have the same figures, at the same frames: of edits, those of clips that were only encoded and decoded.
Prints a line per figure, and last one line of JSON: `tasks`, by task and figure, has `median`, `mean` and all `values`
by seed of `generated` and `real`, and `within`, the share of generated values within the bound of the figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.arrays import Float64Array, Pixels
from pipelines.scenes.clips import DrawnClip, fitting_grid, read_clip
from pipelines.video.spans import FrameGrid
from training.data.buckets import parse_bucket_name
from training.evaluation.tracker import BodyTrack, track
from training.evaluation.truth import World, read_truth
from training.pixels import from_uint8, psnr_db
from training.sampling.continuation import connect, extend
from training.sampling.editing import Edit, edit
from training.sampling.exported_model import ExportedModel
from training.sampling.long_video import long_video
from training.sampling.loops import closed_loop, new_loop
from training.sampling.media import write_png
from training.sampling.request import Context, Generated, Request, new_video
from training.sampling.settings import SampleSettings

Figures = dict[str, float]

BOUNDS: dict[str, tuple[float, float]] = {
    "join": (0, 1.5),
    "group_join": (0, 1.5),
    "motion": (0.7, 1.3),
    "changed": (1, 1),
    "moved": (0, 0.1),
    "others_moved": (0, 0.1),
}
"""Lowest and highest good value of a figure."""
STRENGTHS = (0.6, 0.7, 0.8)
LONG_TIMES_S = (4, 15, 30, 60, 600)
"""Times at which a long video is measured, if it has them."""


@dataclass(frozen=True)
class Measured:
    """Figures of a generated video and of a real one, and the frames of the former."""

    generated: Figures
    real: Figures
    frames_THWC: Pixels


def differences(frames_THWC: Pixels) -> Float64Array:
    """Return the mean absolute difference of each frame to the one after it, the first frame after the last one."""
    following_THWC = np.roll(frames_THWC, -1, axis=0).astype(np.int16)
    found: Float64Array = np.abs(following_THWC - frames_THWC).mean(axis=(1, 2, 3))
    return found


def joins(frames_THWC: Pixels, factor: int, *last: int) -> Figures:
    """Return the largest difference of frames `last` to those after them, over the median ones.

    `factor` is the number of frames in a latent frame, by which all places between latent frames are found.
    """
    found = differences(frames_THWC)
    usual = {"join": found[:-1], "group_join": found[last[0] % factor : -1 : factor]}
    return {
        name: max(float(found[frame] / max(np.median(values), 1e-9)) for frame in last)
        for name, values in usual.items()
    }


def motion(frames_THWC: Pixels) -> float:
    """Return the mean difference of neighbouring frames."""
    return float(differences(frames_THWC)[:-1].mean())


class Tasks:
    """The tasks for one clip, by name; each makes a video and measures it."""

    def __init__(self, model: ExportedModel, clip: DrawnClip, world: World, arguments: argparse.Namespace) -> None:
        self.model, self.clip, self.world, self.arguments = model, clip, world, arguments
        self.real = clip.frames_THWC
        self.n_frames, self.factor = len(clip.frames_THWC), model.autoencoder.time_factor
        self.seconds = (self.n_frames - 1) / clip.fps

    def functions(self) -> Mapping[str, Callable[[], Measured]]:
        """Return the functions of all tasks."""
        sdedit = {f"sdedit-{strength}": lambda strength=strength: self.edit(strength, False) for strength in STRENGTHS}
        return {
            "extend": self.extend,
            "backward": self.backward,
            "connect": self.connect,
            "loop": self.loop,
            "close": self.close,
            **sdedit,
            "flowedit": lambda: self.edit(STRENGTHS[1], True),
            "long": self.long,
        }

    def request(self, seconds: float, context_seconds: float = 1.0, **changes: object) -> Request:
        """Return the request of the clip's caption, or of another prompt."""
        height, width = self.real.shape[1:3]
        context = Context(context_seconds, self.arguments.context_noise)
        values = {"prompt": self.clip.shot.caption, "seconds": seconds, "fps": self.clip.fps, **changes}
        options = {key: getattr(self.arguments, key) for key in ("steps", "guidance", "seed")}
        settings = SampleSettings(**{"size": f"{width}x{height}", **options, **values})
        return self.model.request(settings, context)

    def video(self, generated: Generated) -> Pixels:
        """Return the frames of a result."""
        return generated.video(self.model.autoencoder)

    def joins(self, frames_THWC: Pixels, *last: int) -> Figures:
        """Return the figures of the joins after frames `last`."""
        return joins(frames_THWC, self.factor, *last)

    def extend(self) -> Measured:
        """Extend the first half of the clip."""
        given = self.factor * ((self.n_frames - 1) // self.factor // 2) + 1
        seconds = (self.n_frames - given) / self.clip.fps
        found = self.video(extend(self.request(seconds, (given - 1) / self.clip.fps), self.real[:given]))
        return Measured(self.joins(found, given - 1), self.joins(self.real, given - 1), found)

    def backward(self) -> Measured:
        """Extend the last half of the clip backward."""
        new = self.factor * ((self.n_frames - 1) // self.factor // 2)
        given = self.real[new:]
        request = self.request(new / self.clip.fps, (len(given) - 1) / self.clip.fps)
        found = self.video(extend(request, given, "backward"))
        return Measured(self.joins(found, new - 1), self.joins(self.real, new - 1), found)

    def connect(self) -> Measured:
        """Connect the start and the end of the clip; as many frames are generated as there were between."""
        given = self.factor + 1
        before, after = self.real[:given], self.real[-given:]
        between = self.n_frames - 2 * given
        request = self.request((between + 1) / self.clip.fps, self.factor / self.clip.fps)
        generated = connect(request, before, after)
        found = self.video(generated)
        decoded = self.model.decode(generated.latent_BCTHW)[:given]
        alone = self.model.decode(request.encode(before)[None])
        unchanged = np.array_equal(found[:given], before) and np.array_equal(found[-given:], after)
        context = {"context_psnr_db": psnr(decoded, before), "unchanged": float(unchanged)}
        ends = (given - 1, given + between - 1)
        real = self.joins(self.real, *ends) | {"context_psnr_db": psnr(alone, before)}
        return Measured(self.joins(found, *ends) | context, real, found)

    def loop(self) -> Measured:
        """Make a new loop of the clip's length, and a plain sample of the same seed to compare its motion with."""
        found = self.video(new_loop(self.request(self.seconds)))
        plain = motion(self.video(new_video(self.request(self.seconds))))
        generated = self.joins(found, len(found) - 1) | {"motion": motion(found) / max(plain, 1e-9)}
        real = self.joins(self.real, self.n_frames - 1) | {"motion": motion(self.real) / max(plain, 1e-9)}
        return Measured(generated, real, found)

    def close(self) -> Measured:
        """Close the clip by a second of new frames."""
        found = self.video(closed_loop(self.request(1.0), self.real))
        ends = (self.n_frames - 1, len(found) - 1)
        return Measured(self.joins(found, *ends), self.joins(self.real, self.n_frames - 1), found)

    def edit(self, strength: float, flow: bool) -> Measured:
        """Give the first shape of the clip another colour."""
        caption, body = self.clip.shot.caption, self.clip.shot.bodies[0]
        used = {other.colour for other in self.clip.shot.bodies}
        colour = next(name for name in self.world.colours if name not in used and name not in caption)
        prompt = caption.replace(f"{body.colour} {body.kind}", f"{colour} {body.kind}")
        if prompt == caption:
            raise ValueError(f"{self.clip.file.file}: the caption does not name a {body.colour} {body.kind}: {caption}")
        source_NE = self.model.embed(caption) if flow else None
        generated = edit(self.request(self.seconds, prompt=prompt), self.real, Edit(strength, source_NE))
        found = self.video(generated)
        coded = self.model.decode(generated.latent_BCTHW.new_tensor(self.encoded()))
        return Measured(self.judged(found, colour, body.colour), self.judged(coded, body.colour, colour), found)

    def encoded(self) -> Float64Array:
        """Return the latents `[1, C, t, h, w]` of the clip."""
        latents: Float64Array = self.request(self.seconds).encode(self.real)[None].cpu().numpy()
        return latents

    def judged(self, frames_THWC: Pixels, colour: str, other: str) -> Figures:
        """Return the figures of a clip whose first shape should have `colour`, and no shape `other`."""
        bodies = track(frames_THWC, self.clip.fps, self.world, self.clip.room).bodies
        by_colour = {body.colour: body for body in bodies}
        figures = {"changed": float(colour in by_colour and other not in by_colour)}
        names = [colour, *(body.colour for body in self.clip.shot.bodies[1:])]
        moved = [self.moved(by_colour.get(name), index) for index, name in enumerate(names)]
        figures["moved"] = moved[0]
        if len(moved) > 1:
            figures["others_moved"] = max(moved[1:])
        return figures

    def moved(self, body: BodyTrack | None, index: int) -> float:
        """Return the median distance of a shape to the true position of one, as a share of the side; NaN for none."""
        if body is None or not body.is_placed.any():
            return math.nan
        height, width = self.real.shape[1:3]
        cameras_T3, states_T3 = self.clip.cameras_T3, self.clip.states_TB3[:, index]
        scale_T = self.clip.room.unit_px * cameras_T3[:, 2]
        x_T = (states_T3[:, 0] - cameras_T3[:, 0]) * scale_T + width / 2
        y_T = (states_T3[:, 1] - cameras_T3[:, 1]) * scale_T + height / 2
        distance_T = np.maximum(np.abs(body.x_T - x_T) / width, np.abs(body.y_T - y_T) / height)
        return float(np.nanmedian(distance_T))

    def long(self) -> Measured:
        """Make a long video in windows as long as the clip, and measure seconds of it."""
        request = self.request(self.arguments.long_seconds, window=self.seconds)
        found = self.video(long_video(request, self.seconds))
        second = round(self.clip.fps)
        # The last frame of each window but the last; every later window adds those after its overlap.
        n_window, overlap = request.latents_in(self.seconds), request.latents_in(request.context.seconds)
        windows = range(self.factor * n_window, len(found) - 1, self.factor * (n_window - overlap))
        figures = self.joins(found, *windows) | self.state(found[:second], found[:second], "1")
        for time_s in LONG_TIMES_S:
            if time_s <= self.arguments.long_seconds:
                end = round(time_s * self.clip.fps)
                figures |= self.state(found[:second], found[end - second : end], str(time_s))
        return Measured(figures, self.state(self.real[:second], self.real[-second:], "1"), found)

    def state(self, first_THWC: Pixels, frames_THWC: Pixels, time: str) -> Figures:
        """Return what is measured of one second, beside the first second."""
        colour, before = (np.median(frames, axis=(0, 1, 2)) for frames in (frames_THWC, first_THWC))
        bodies = track(frames_THWC, self.clip.fps, self.world, self.clip.room).bodies
        wanted = sorted((body.colour, body.kind) for body in self.clip.shot.bodies)
        return {
            f"colour_{time}s": float(np.abs(colour - before).mean()),
            f"number_{time}s": float(len(bodies) == len(wanted)),
            f"identity_{time}s": float(sorted((body.colour, body.kind or "") for body in bodies) == wanted),
        }


def psnr(frames_THWC: Pixels, expected_THWC: Pixels) -> float:
    """Return the PSNR in dB between two videos."""
    made, expected = (
        from_uint8(torch.from_numpy(frames.copy())).permute(3, 0, 1, 2)[None] for frames in (frames_THWC, expected_THWC)
    )
    return float(psnr_db(made, expected))


def find_clips(model: ExportedModel, folder: str, n: int) -> tuple[World, list[DrawnClip]]:
    """Return the first n clips that fit the longest videos of a model. Raises `ValueError` for fewer."""
    sizes = [parse_bucket_name(bucket) for bucket in model.card.buckets]
    longest = max(frames for _, _, frames in sizes)
    grids = [FrameGrid(model.card.fps, frames, width, height) for width, height, frames in sizes if frames == longest]
    world, files = read_truth(folder)
    fitting = ((file, fitting_grid(file, file.shots[0], grids)) for file in files if len(file.shots[0].states_FB3) > 1)
    found = list(itertools.islice(((file, grid) for file, grid in fitting if grid is not None), n))
    if len(found) < n:
        raise ValueError(
            f"{folder}: {len(found)} clips have {longest} frames at {model.card.fps:g} fps; {n} are needed"
        )
    return world, [read_clip(folder, file, file.shots[0], grid) for file, grid in found]


def summary(task: Mapping[str, Mapping[str, list[float]]]) -> dict[str, object]:
    """Return the figures of one task: by figure, those of generated and of real clips."""
    found: dict[str, object] = {}
    for figure, values in task["generated"].items():
        low, high = BOUNDS.get(figure, (-math.inf, math.inf))
        entry: dict[str, object] = {"generated": statistics(values)}
        if figure in task["real"]:
            entry["real"] = statistics(task["real"][figure])
        if figure in BOUNDS:
            entry["within"] = round(sum(low <= value <= high for value in values) / len(values), 3)
        found[figure] = entry
    return found


def statistics(values: list[float]) -> dict[str, object]:
    """Return median, mean and all values; those that could not be measured are null."""
    finite = [value for value in values if math.isfinite(value)]
    median, mean = (round(float(of(finite)), 4) if finite else None for of in (np.median, np.mean))
    shown = [round(value, 4) if math.isfinite(value) else None for value in values]
    return {"median": median, "mean": mean, "values": shown}


def write_strip(folder: Path, name: str, frames_THWC: Pixels, columns: int = 12) -> None:
    """Write frames at equal distances side by side."""
    chosen = np.linspace(0, len(frames_THWC) - 1, min(columns, len(frames_THWC))).round().astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    write_png(str(folder / f"{name}.png"), np.concatenate(list(frames_THWC[chosen]), axis=1))


def main(arguments: argparse.Namespace) -> None:
    """Measure all tasks and print their figures."""
    model = ExportedModel(arguments.model)
    world, clips = find_clips(model, arguments.footage, arguments.seeds)
    tasks: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed, clip in enumerate(clips):
        arguments.seed = seed
        for name, measure in Tasks(model, clip, world, arguments).functions().items():
            if arguments.tasks and name not in arguments.tasks:
                continue
            measured = measure()
            task = tasks.setdefault(name, {"generated": defaultdict(list), "real": defaultdict(list)})
            for kind, figures in (("generated", measured.generated), ("real", measured.real)):
                for figure, value in figures.items():
                    task[kind][figure].append(value)
            if arguments.frames:
                write_strip(arguments.frames, f"{name}-{seed}", measured.frames_THWC)
        print(f"seed {seed}: {clip.file.file}", flush=True)
    found = {name: summary(task) for name, task in tasks.items()}
    for name, task_figures in found.items():
        for figure, entry in task_figures.items():
            print(f"{name:>12} {figure:<18} {json.dumps(entry)[:160]}")
    settings = {key: getattr(arguments, key) for key in ("seeds", "steps", "guidance", "context_noise", "long_seconds")}
    print(json.dumps({"benchmark": "sampling", "model": model.card.weights, **settings, "tasks": found}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = SampleSettings.model_fields
    parser.add_argument("--model", required=True, help="folder of an exported model")
    parser.add_argument("--footage", required=True, help="folder of drawn footage with its truth")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--steps", type=int, default=defaults["steps"].default)
    parser.add_argument("--guidance", type=float, default=defaults["guidance"].default)
    parser.add_argument("--context-noise", type=float, default=0.0)
    parser.add_argument("--long-seconds", type=float, default=60.0)
    parser.add_argument("--frames", type=Path, help="folder for strips of frames")
    main(parser.parse_args())
