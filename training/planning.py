"""Plans over a data set: what the planner has to know of its samples and of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.chance import numbers_of
from training.conditioning import ConditioningRates
from training.data.buckets import latent_size, shape_of
from training.data.costs import SampleCosts, Work
from training.data.loader import Dataset
from training.data.plan import Planner
from training.data.step_times import StepTimes
from training.data.tails import Tails
from training.data.views import by_bucket
from training.model import ModelSettings
from training.settings import TrainSettings
from training.step import tails_given

Latents = Mapping[str, tuple[int, int, int]]
"""Latent frames, rows and columns by bucket."""


def planner_of(dataset: Dataset, settings: TrainSettings, seed: int, times: StepTimes | None = None) -> Planner:
    """Which samples of the data set make up which step, and who computes them: by arithmetic, or by `times` where they are given."""
    table, info = dataset.table, dataset.info
    buckets = table["bucket"].to_pylist()
    latents = {name: latent_size(*shape_of(name), info.time_factor, info.space_factor) for name in set(buckets)}
    costs = costs_of(settings.model, latents, buckets, table["n_text"].to_pylist(), times)
    tails = tails_of(settings.conditioning, seed, latents, table["uid"].to_pylist()) if settings.conditioning.gives_tails else None
    return Planner(buckets, table["n_tokens"].to_pylist(), settings.batch, seed, costs, tails)


def costs_of(model: ModelSettings, latents: Latents, buckets: Sequence[str], n_text: Sequence[int], times: StepTimes | None = None) -> SampleCosts:
    """By bucket, for samples whose main captions have so many tokens; `buckets[i]` and `n_text[i]` are those of row i."""
    names, numbers = by_bucket(buckets)
    text = dict(zip(names, (np.bincount(numbers, n_text) / np.bincount(numbers)).tolist(), strict=True))

    def work(name: str, frames: int, rows: int, columns: int) -> Work:
        tokens = model.tokens(frames, rows, columns)
        return Work(tokens, model.flops(tokens, round(text[name])))

    # With the last picture a video is a latent frame longer.
    return SampleCosts(
        {name: (work(name, frames, *area), work(name, frames + (frames > 1), *area)) for name, (frames, *area) in latents.items()}, times
    )


def tails_of(conditioning: ConditioningRates, seed: int, latents: Latents, uids: Sequence[str]) -> Tails:
    """Where training with this seed gives last pictures."""
    numbers_N = numbers_of(uids)
    cells = {name: rows * columns * (frames > 1) for name, (frames, rows, columns) in latents.items()}
    return Tails(lambda rows, seen: tails_given(conditioning, seed, numbers_N[rows], seen), cells)
