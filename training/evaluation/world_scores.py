"""Scores of a drawn world while a model trains: whether clips show what a few held-out captions say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cluster import plugins
from cluster.arrays import Pixels, UInt8Array
from training.checkpoints.model_card import ModelCard
from training.data.buckets import parse_bucket_name
from training.evaluation.metric import FOLDER, Case, Clip, Expected, MetricSettings, estimate
from training.evaluation.results import measure
from training.evaluation.truth import World, fitting_shape, read_truth
from training.sampling.coding import decode_video
from training.sampling.generation import ModelParts, generate, video_timeline
from training.sampling.settings import SolverSettings, VideoShape

METRICS = ("background", "colours", "kinds", "number")
"""Names of the metrics, whose values are shares."""


def world_scores(clips: Iterable[Clip]) -> dict[str, float]:
    """Return the mean of each of `METRICS` that judged some of the clips."""
    metrics = [plugins.build(FOLDER, MetricSettings, {"name": name}) for name in METRICS]
    cases: dict[str, list[Sequence[Case]]] = {name: [] for name in METRICS}
    for clip in clips:
        for name, judged in measure(clip, metrics).items():
            cases[name].append(judged)
    found = {name: estimate(of_clips) for name, of_clips in cases.items()}
    return {name: one.mean for name, one in found.items() if one is not None}


class ScoredPrompt(NamedTuple):
    """A held-out caption, the shape to generate, and what the clip must show."""

    caption: str
    shape: VideoShape
    expected: Expected


class WorldScores:
    """The scores of the first `count` videos' captions in a folder of drawn footage, always from the same noise."""

    def __init__(self, footage: str, count: int) -> None:
        self._footage, self._count = footage, count
        self._prompts: list[ScoredPrompt] = []
        self._texts: list[Tensor] = []
        self._world: World | None = None

    def prompts(self, card: ModelCard) -> list[ScoredPrompt]:
        """Return the captions, in the shapes of a model's buckets.

        Raises `ValueError` if the folder has no truth, or no video that fits a bucket of the model.
        """
        if self._world is None:
            self._world, files = read_truth(self._footage)
            sizes = [parse_bucket_name(bucket) for bucket in card.buckets]
            shapes = [VideoShape(frames, height, width, card.fps) for width, height, frames in sizes if frames > 1]
            shots = [(file.shots[0], fitting_shape(file, file.shots[0], shapes)) for file in files]
            fitting = [ScoredPrompt(shot.caption, shape, Expected.of(shot)) for shot, shape in shots if shape]
            self._prompts = fitting[: self._count]
        if not self._prompts:
            raise ValueError(f"{self._footage}: no video of it is as long as a bucket of the model")
        return self._prompts

    def clip(self, index: int, parts: ModelParts, solver: SolverSettings) -> UInt8Array:
        """Return the clip `[T, H, W, 3]` of one caption.

        Captions are embedded at the first call, by the text encoder of the model's card.
        """
        prompts, device = self.prompts(parts.card), parts.null_text_NE.device
        if not self._texts:
            embeddings = parts.card.text_encoder.open(device.type).encode([prompt.caption for prompt in prompts])
            self._texts = [torch.from_numpy(embedding.tokens).to(device) for embedding in embeddings]
        timeline = video_timeline(parts, self._texts[index], prompts[index].shape)
        return decode_video(parts.autoencoder, generate(parts, timeline, solver.model_copy(update={"seed": index})))

    def judge(self, clips: Sequence[Pixels]) -> dict[str, float]:
        """Return the mean of each metric that judged some of the clips, one per caption."""
        assert self._world is not None
        return world_scores(
            Clip(frames_THWC, prompt.shape.fps, self._world, prompt.expected)
            for prompt, frames_THWC in zip(self._prompts, clips, strict=True)
        )

    def measure(self, parts: ModelParts, solver: SolverSettings) -> dict[str, float]:
        """Generate all clips and return their scores; raises as `prompts` does."""
        return self.judge([self.clip(index, parts, solver) for index in range(len(self.prompts(parts.card)))])
