"""The contract of a metric of clips, the clip that it measures, and its mean with a confidence interval."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from cluster.arrays import Pixels
from cluster.plugins import Plugin
from cluster.storage import digest
from training.evaluation.camera import Room
from training.evaluation.tracker import ClipTracks, track
from training.evaluation.truth import ShotTruth, World

Better = Literal["high", "low", "real"]
"""Which values of a metric are better: high ones, low ones, or those near the ones of real clips."""

FOLDER = "training.evaluation.metrics"
N_RESAMPLES = 1000
CONFIDENCE = 0.95
"""Resamples of the bootstrap over clips, and the share of them inside the interval."""


class Expected(NamedTuple):
    """The content of a clip of a drawn world by its caption."""

    background: str
    action: str
    camera: str
    bodies: tuple[tuple[str, str], ...]
    """Colour and kind of each shape."""

    @classmethod
    def of(cls, shot: ShotTruth) -> Expected:
        """Return what the caption of a drawn shot says."""
        return cls(shot.background, shot.action, shot.camera, tuple((body.colour, body.kind) for body in shot.bodies))


class Case(NamedTuple):
    """One judgement of a metric: a value, and the weight that it has in the mean."""

    value: float
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip to measure: frames uint8 RGB `[T, H, W, 3]`, and its world and caption if it is of a drawn world."""

    frames_THWC: Pixels
    fps: float
    world: World | None = None
    expected: Expected | None = None
    room: Room | None = None
    """The room that is shown, if the frames were cropped."""

    @cached_property
    def tracks(self) -> ClipTracks | None:
        """The findings of the tracker; None outside drawn worlds."""
        return None if self.world is None else track(self.frames_THWC, self.fps, self.world, self.room)


class MetricSettings(Plugin):
    """Settings of a metric, chosen by `name`. Each file in `training/evaluation/metrics/` has one subclass.

    The class variables say what its values are.
    """

    unit: ClassVar[str] = ""
    """Unit of the values; empty for shares and ratios."""
    better: ClassVar[Better] = "high"

    @abc.abstractmethod
    def cases(self, clip: Clip) -> Sequence[Case]:
        """Return every judgement of a clip; none if nothing can be judged."""

    def target(self, world: World) -> float | None:
        """Return the true value in a drawn world, if there is one."""
        return None


class Estimate(NamedTuple):
    """A weighted mean over all judged cases of a set of clips, with a bootstrap interval over clips."""

    mean: float
    low: float
    high: float
    cases: int
    clips: int
    """Clips with a judged case."""


def estimate(cases_of_clips: Sequence[Sequence[Case]]) -> Estimate | None:
    """Return the weighted mean of all cases and the percentile interval of the bootstrap over clips (Efron 1979).

    None if nothing was judged. The same cases give the same interval.
    """
    judged = [cases for cases in cases_of_clips if cases]
    if not judged:
        return None
    sums = np.array([[sum(c.value * c.weight for c in cases), sum(c.weight for c in cases)] for cases in judged])
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    rng = np.random.default_rng(int(digest(repr(sums.round(9).tolist()), size_bytes=4), 16))
    picked = rng.integers(0, len(judged), (N_RESAMPLES, len(judged)))
    means = sums[picked, 0].sum(1) / sums[picked, 1].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return Estimate(mean, low, high, sum(len(cases) for cases in judged), len(judged))
