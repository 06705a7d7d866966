"""Plans over a data set: what the planner has to know of its samples and of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.conditioning import ConditioningRates
from training.data.buckets import latent_size, shape_of
from training.data.costs import SampleCosts, Work
from training.data.loader import Dataset
from training.data.plan import Planner
from training.data.step_times import StepTimes
from training.data.tails import Tails
from training.model import ModelSettings
from training.rng import numbers_of
from training.settings import TrainSettings
from training.step import tails_given

Latents = Mapping[str, tuple[int, int, int]]
"""Latent frames, rows and columns by bucket."""


def planner_of(dataset: Dataset, settings: TrainSettings, seed: int, times: StepTimes | None = None) -> Planner:
    """Which samples of the data set make up which step, and who computes them: by arithmetic, or by `times` where they are given."""
    table, info = dataset.table, dataset.info
    means = table.group_by("bucket").aggregate([("n_text", "mean")])
    n_text = dict(zip(means["bucket"].to_pylist(), means["n_text_mean"].to_pylist(), strict=True))
    latents = {name: latent_size(*shape_of(name), info.time_factor, info.space_factor) for name in n_text}
    costs = costs_of(settings.model, latents, n_text, times)
    tails = (
        tails_of(settings.conditioning, seed, latents, table["uid"].to_pylist())
        if settings.conditioning.gives_tails
        else None
    )
    return Planner(table["bucket"].to_pylist(), table["n_tokens"].to_pylist(), settings.batch, seed, costs, tails)


def costs_of(
    model: ModelSettings, latents: Latents, n_text: Mapping[str, float], times: StepTimes | None = None
) -> SampleCosts:
    """By bucket, where the main captions of its samples have so many tokens on average; `latents` may have more buckets."""

    def work(name: str, frames: int, rows: int, columns: int) -> Work:
        tokens = model.tokens(frames, rows, columns)
        return Work(tokens, model.flops(tokens, round(n_text[name])))

    def both(name: str) -> tuple[Work, Work]:
        frames, *area = latents[name]
        # With the last picture a video is a latent frame longer.
        return work(name, frames, *area), work(name, frames + (frames > 1), *area)

    return SampleCosts({name: both(name) for name in n_text}, times)


def tails_of(conditioning: ConditioningRates, seed: int, latents: Latents, uids: Sequence[str]) -> Tails:
    """Where training with this seed gives last pictures."""
    numbers_N = numbers_of(uids)
    cells = {name: rows * columns * (frames > 1) for name, (frames, rows, columns) in latents.items()}
    return Tails(lambda rows, seen: tails_given(conditioning, seed, numbers_N[rows], seen), cells)
