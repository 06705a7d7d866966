"""Scores of a drawn world while a model trains: whether clips show what a few held-out captions say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cluster import plugins
from training.checkpoints.model_card import ModelCard
from training.data.buckets import parse_bucket_name
from training.evaluation.metric import FOLDER, Case, Clip, Expected, MetricSettings, estimate
from training.evaluation.results import measure
from training.evaluation.truth import FileTruth, ShotTruth, World, read_truth
from training.sampling.coding import decode_video
from training.sampling.generation import ModelParts, generate, video_timeline
from training.sampling.settings import SolverSettings, VideoShape

METRICS = ("background", "colours", "kinds", "number")
"""Names of the metrics, whose values are shares."""


class ScoredPrompt(NamedTuple):
    """A held-out caption with its embedding `[N, E]`, the shape to generate, and what the clip must show."""

    text_NE: Tensor
    shape: VideoShape
    expected: Expected


class WorldScores:
    """The scores of the first `count` videos' captions in a folder of drawn footage, always from the same noise."""

    def __init__(self, footage: str, count: int) -> None:
        self._footage, self._count = footage, count
        self._prompts: list[ScoredPrompt] = []
        self._world: World | None = None

    def measure(self, parts: ModelParts, solver: SolverSettings) -> dict[str, float]:
        """Generate the clips and return the mean of each metric that judged some of them.

        Captions are embedded at the first call, by the text encoder of the model's card. Raises `ValueError` if the
        folder has no truth, or no video that fits a bucket of the model.
        """
        if self._world is None:
            self._world, files = read_truth(self._footage)
            self._prompts = _prompts(files, parts.card, self._count, parts.null_text_NE.device)
        if not self._prompts:
            raise ValueError(f"{self._footage}: no video of it is as long as a bucket of the model")
        metrics = [plugins.build(FOLDER, MetricSettings, {"name": name}) for name in METRICS]
        cases: dict[str, list[Sequence[Case]]] = {name: [] for name in METRICS}
        for seed, prompt in enumerate(self._prompts):
            timeline = video_timeline(parts, prompt.text_NE, prompt.shape)
            latent_BCTHW = generate(parts, timeline, solver.model_copy(update={"seed": seed}))
            frames_THWC = decode_video(parts.autoencoder, latent_BCTHW)
            clip = Clip(frames_THWC, prompt.shape.fps, self._world, prompt.expected)
            for name, judged in measure(clip, metrics).items():
                cases[name].append(judged)
        found = {name: estimate(of_clips) for name, of_clips in cases.items()}
        return {name: one.mean for name, one in found.items() if one is not None}


def _prompts(files: Sequence[FileTruth], card: ModelCard, count: int, device: torch.device) -> list[ScoredPrompt]:
    fitting = [(file.shots[0], shape) for file in files if (shape := fitting_shape(file, file.shots[0], card))][:count]
    if not fitting:
        return []
    embeddings = card.text_encoder.open(device.type).encode([shot.caption for shot, _ in fitting])
    return [
        ScoredPrompt(torch.from_numpy(embedding.tokens).to(device), shape, Expected.of(shot))
        for (shot, shape), embedding in zip(fitting, embeddings, strict=True)
    ]


def fitting_shape(file: FileTruth, shot: ShotTruth, card: ModelCard) -> VideoShape | None:
    """Return the video bucket of a model with the aspect nearest to a file's, then the longest that a shot fills.

    None if the shot is shorter than all of them.
    """
    seconds = (shot.end_frame - shot.start_frame - 1) / file.fps
    buckets = [parse_bucket_name(bucket) for bucket in card.buckets]
    fitting = [
        VideoShape(frames, height, width, card.fps)
        for width, height, frames in buckets
        if frames > 1 and (frames - 1) / card.fps <= seconds + 1e-6
    ]

    def distance(shape: VideoShape) -> tuple[float, int]:
        return round(abs(math.log(shape.width / shape.height * file.height / file.width)), 3), -shape.frames

    return min(fitting, key=distance, default=None)
