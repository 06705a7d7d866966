"""The stream of drawn footage: single shots and still images without end, each a pure function of its index.

The training and the held-out stream of a seed share no random numbers. Training footage has no held-out combination
(`combinations`); of held-out footage, one file in 16 has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np

from cluster.storage import digest
from pipelines.scenes.combinations import HELD_OUT_PAIRS, has_held_out_pair
from pipelines.scenes.draw import BACKGROUNDS, COLOURS, KINDS, Backdrop, Body
from pipelines.scenes.scene import (
    ACTIONS,
    BOUNCE,
    CAMERA_MOVES,
    GRAVITY,
    Action,
    Motion,
    Scene,
    backgrounds_for,
    still_caption,
)
from pipelines.scenes.starts import choose_motion
from training.evaluation.truth import BodyTruth, Combination, FileTruth, ShotTruth, Split, World

VERSION = 1
"""Version of what the stream draws. It goes up with every change after which an index has another file."""

WORLD = World(GRAVITY, BOUNCE, KINDS, COLOURS, BACKGROUNDS, HELD_OUT_PAIRS)

SIZES = ((192, 112), (168, 96), (112, 192), (144, 144), (96, 96), (176, 128), (128, 96))
"""Width and height of files: 16:9, 9:16, 1:1 and 4:3, as nearly as multiples of 8 allow."""
SIZE_SHARES = (0.15, 0.2, 0.2, 0.1, 0.15, 0.1, 0.1)
RATES = (8, 16, 24)
"""Frame rates: multiples of 8, so that frames at 8 fps are evenly apart."""
SECONDS = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
NUMBER_SHARES = (0.45, 0.45, 0.1)
"""Shares of shots with one, two and three shapes."""
RADII = ((0.2, 0.27), (0.17, 0.24), (0.13, 0.16))
"""Smallest and largest radius of each of one, two and three shapes."""
IMAGE_EVERY = 8
"""One file in this many is a still image."""
UNSEEN_EVERY = 16
"""One video and one image in this many of the held-out stream has a held-out combination."""


@dataclass(frozen=True)
class Stream:
    """A stream of drawn footage, by its seed and its side of the split."""

    seed: int
    split: Split

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: it must be at least 0")
        if self.split not in get_args(Split):
            raise ValueError(f"split={self.split!r}: it is one of {', '.join(get_args(Split))}")

    def file(self, index: int) -> StreamFile:
        """Return the file of an index, from 0; every index has one."""
        if index < 0:
            raise ValueError(f"index={index}: it must be at least 0")
        return StreamFile(self, index)


@dataclass(frozen=True)
class Selection:
    """The first videos and the first images of a stream; one of them may be none."""

    videos: int
    images: int

    def __post_init__(self) -> None:
        if min(self.videos, self.images) < 0 or self.n_files == 0:
            raise ValueError(
                f"videos={self.videos}, images={self.images}: both must be at least 0, and one of them at least 1"
            )

    @classmethod
    def with_images_between(cls, videos: int) -> Selection:
        """Return the selection of the first videos, and of the images between them and directly after them."""
        return cls(videos, videos // (IMAGE_EVERY - 1))

    @property
    def n_files(self) -> int:
        return self.videos + self.images

    def indices(self) -> list[int]:
        """Return the indices of the files in the stream, in ascending order."""
        of_videos = (number + number // (IMAGE_EVERY - 1) for number in range(self.videos))
        of_images = (number * IMAGE_EVERY + IMAGE_EVERY - 1 for number in range(self.images))
        return sorted([*of_videos, *of_images])


@dataclass(frozen=True)
class StreamFile:
    """A file of a stream: its plan, which is cheap to make, and its frames, which are not."""

    stream: Stream
    index: int

    @property
    def is_image(self) -> bool:
        return self.index % IMAGE_EVERY == IMAGE_EVERY - 1

    @property
    def number(self) -> int:
        """Number of videos before a video, of images before an image."""
        images = self.index // IMAGE_EVERY
        return images if self.is_image else self.index - images

    @property
    def name(self) -> str:
        """Name of the file, unique in the stream: a third of the images are JPEG."""
        if not self.is_image:
            return f"clip_{self.index:07d}.mp4"
        return f"photo_{self.index:07d}.{'jpg' if self.number % 3 == 2 else 'png'}"

    @property
    def combination(self) -> Combination:
        unseen = self.stream.split == "held_out" and self.number % UNSEEN_EVERY == UNSEEN_EVERY - 1
        return "unseen" if unseen else "seen"

    @cached_property
    def plan(self) -> Plan:
        """The choices that decide the file's frames."""
        return _choose_plan(self.is_image, self.combination, self._rng("plan"))

    @cached_property
    def motion(self) -> Motion:
        """The motion in every frame of the file."""
        plan = self.plan
        return choose_motion(plan.scene, plan.width, plan.height, plan.fps, self._rng("motion"))

    @property
    def backdrop(self) -> Backdrop:
        """The background, with stripes and light that differ a little between files."""
        rng = self._rng("backdrop")
        return Backdrop(
            self.plan.scene.background,
            self.motion.floor_y,
            stripe_width=float(rng.uniform(0.4, 0.6)),
            stripe_shift=float(rng.uniform(0, 1)),
            light_lean=float(rng.uniform(-1, 1)),
            shadows=True,
        )

    def truth(self, path: str) -> FileTruth:
        """Return the truth of the file, for its path in the folder of the footage. Nothing is drawn for it."""
        plan, motion = self.plan, self.motion
        shot = ShotTruth(
            caption=plan.caption,
            background=plan.scene.background,
            action="none" if self.is_image else plan.scene.action,
            camera=plan.scene.camera,
            floor_y=motion.floor_y,
            bodies=tuple(BodyTruth(body.kind, body.colour, body.radius) for body in motion.bodies),
            start_frame=0,
            end_frame=len(motion.cameras),
            states_FB3=motion.states_FB3.astype(np.float32),
            cameras_F3=np.array([(camera.x, camera.y, camera.zoom) for camera in motion.cameras], np.float32),
        )
        return FileTruth(path, plan.width, plan.height, plan.fps, self.stream.split, (shot,), self.combination)

    def _rng(self, purpose: str) -> np.random.Generator:
        keys = (self.stream.split, str(self.stream.seed), str(self.index), purpose)
        return np.random.default_rng(int(digest("worldloom.drawn-world", *keys, size_bytes=16), 16))


@dataclass(frozen=True)
class Plan:
    """The choices for one file."""

    scene: Scene
    width: int
    height: int
    fps: float
    caption: str


def _choose_plan(is_image: bool, combination: Combination, rng: np.random.Generator) -> Plan:
    width, height = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    fps = 1.0 if is_image else float(rng.choice(RATES))
    seconds = 1.0 if is_image else float(rng.choice(SECONDS)) + 1 / fps
    n = 1 + int(rng.choice(len(NUMBER_SHARES), p=NUMBER_SHARES))
    bodies, action = _choose_bodies(n, is_image, combination, rng)
    names = backgrounds_for([body.colour for body in bodies])
    background = names[rng.integers(len(names))]
    camera = "still" if is_image else CAMERA_MOVES[rng.integers(len(CAMERA_MOVES))]
    scene = Scene(action, camera, background, bodies, seconds)
    caption = still_caption(bodies, background) if is_image else scene.caption
    return Plan(scene, width, height, fps, caption)


def _choose_bodies(
    n: int, is_image: bool, combination: Combination, rng: np.random.Generator
) -> tuple[tuple[Body, ...], Action]:
    """Return n shapes of different kinds and colours, and their action; shapes of an image are placed as in a glide."""
    while True:
        kinds, colours = rng.permutation(len(KINDS))[:n], rng.permutation(len(COLOURS))[:n]
        radii = rng.uniform(*RADII[n - 1], n).tolist()
        names = list(COLOURS)
        bodies = tuple(
            Body(KINDS[kind], names[colour], radius) for kind, colour, radius in zip(kinds, colours, radii, strict=True)
        )
        action = "glide" if is_image else ACTIONS[rng.integers(len(ACTIONS))]
        unseen = has_held_out_pair(bodies, "none" if is_image else action)
        if (
            unseen == (combination == "unseen")
            and is_shown(action, bodies)
            and backgrounds_for([body.colour for body in bodies])
        ):
            return bodies, action


def is_shown(action: Action, bodies: tuple[Body, ...]) -> bool:
    """Return whether shapes can show an action: one shape collides with nothing, and a circle's spin is not seen."""
    if action == "collide":
        return len(bodies) > 1
    return not (action == "circle" and bodies[0].kind == "circle")


@dataclass(frozen=True, eq=False)
class HeldOutPrompt:
    """A prompt of evaluation: a caption of the held-out stream, and the file that shows it."""

    caption: str
    width: int
    height: int
    seconds: float
    """Seconds from the first frame to the last."""
    truth: FileTruth


def held_out_prompts(n: int, seed: int = 0) -> list[HeldOutPrompt]:
    """Return the first n videos of the held-out stream of a seed as prompts; 1 in 16 has an unseen combination."""
    stream = Stream(seed, "held_out")
    files = [stream.file(index) for index in Selection(n, 0).indices()]
    return [
        HeldOutPrompt(
            plan.caption, plan.width, plan.height, (len(file.motion.cameras) - 1) / plan.fps, file.truth(file.name)
        )
        for file, plan in ((file, file.plan) for file in files)
    ]
