"""Which latent frames are given to the model in training, which it generates, and how noisy given ones are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cluster.config import Settings

Uniform = Callable[[], float]
"""A source of independent numbers, uniform in [0, 1)."""


@dataclass(frozen=True)
class Given:
    """What one sample is given."""

    frames: tuple[bool, ...]
    """For every latent frame, whether it is given; at least one is generated."""
    tail: bool = False
    """Whether the last picture is given: encoded as an image, as one more latent frame at its own time. The last latent frame, which mixes
    that picture with those before it, is generated then."""
    time: float = 0.0
    """Noise level of what is given, 0 for clean."""

    def __bool__(self) -> bool:
        """Whether anything is given."""
        return self.tail or any(self.frames)


DEFAULT_RATES = {
    "none": 0.75,
    "first": 0.13,
    "last": 0.02,
    "both": 0.04,
    "prefix": 0.03,
    "suffix": 0.02,
    "middle": 0.01,
}
"""A quarter of samples is conditioned, most of them on the first frame."""

KINDS = tuple(DEFAULT_RATES)


class ConditioningRates(Settings):
    """Shares of training samples by the frames they are given; they sum to 1. Where any is written, those that are not are 0.

    An image has no other frame, so nothing of it is given; where a video is too short for the middle, its first frame is.
    """

    none: float = Field(DEFAULT_RATES["none"], ge=0, le=1, description="Nothing is given: text to video.")
    first: float = Field(DEFAULT_RATES["first"], ge=0, le=1, description="The first frame: image to video.")
    last: float = Field(DEFAULT_RATES["last"], ge=0, le=1, description="The last picture: a video that ends as wanted.")
    both: float = Field(
        DEFAULT_RATES["both"], ge=0, le=1, description="The first and the last picture: connecting two pictures."
    )
    prefix: float = Field(
        DEFAULT_RATES["prefix"], ge=0, le=1, description="Some frames from the first on, any number: extending forward."
    )
    suffix: float = Field(
        DEFAULT_RATES["suffix"], ge=0, le=1, description="Some frames up to the last, any number: extending backward."
    )
    middle: float = Field(
        DEFAULT_RATES["middle"],
        ge=0,
        le=1,
        description="Some frames with generated ones on both sides: extending both ways.",
    )
    given_noise: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Given frames are noised up to this level, drawn for each sample and told to the model, "
        "so that it forgives faults in what it is given later (as Ho et al. 2021, section 4.2, do with cascades); 0 for never.",
    )

    @model_validator(mode="after")
    def _others_are_0(self) -> ConditioningRates:
        if self.model_fields_set & DEFAULT_RATES.keys():
            for kind in DEFAULT_RATES.keys() - self.model_fields_set:
                # Frozen from here on. A validator before the fields would see JSON as Python, where rules are others.
                object.__setattr__(self, kind, 0.0)
        return self

    @model_validator(mode="after")
    def _sum(self) -> ConditioningRates:
        rates = {kind: rate for kind, rate in self._rates().items() if rate}
        total = sum(rates.values())
        if abs(total - 1) > 1e-6:
            terms = " + ".join(f"{kind} {rate:g}" for kind, rate in rates.items()) or "the sum of all"
            raise ValueError(f"{terms} is {total:g}; the shares must sum to 1")
        return self

    @property
    def gives_tails(self) -> bool:
        """Whether the last picture of a sample is ever given."""
        return self.last + self.both > 0

    def _rates(self) -> dict[str, float]:
        return {kind: getattr(self, kind) for kind in DEFAULT_RATES}

    def draw(self, place: float, uniform: Uniform, n_frames: int) -> Given:
        """What a sample of `n_frames` latent frames is given.

        Which kind follows from its place in [0, 1) among the shares; which frames, and how noisy, from `uniform`.
        """
        kind = KINDS[bisect_right(self._ends(), place)]
        given = given_of(kind, n_frames, uniform)
        return replace(given, time=self.given_noise * uniform()) if given else given

    def tails_at(self, places_N: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether videos at these places are given their last picture."""
        ends = dict(zip(KINDS, self._ends(), strict=True))
        # Two kinds that follow each other.
        given: NDArray[np.bool_] = (places_N >= ends["first"]) & (places_N < ends["both"])
        return given

    def _ends(self) -> list[float]:
        """Where in [0, 1) each kind's share ends."""
        ends = list(accumulate(self._rates().values()))
        # They sum to 1 but for rounding, and every place is below 1.
        return [end / ends[-1] for end in ends]


def given_of(kind: str, n_frames: int, uniform: Uniform) -> Given:
    """What is given of a sample of `n_frames` latent frames, clean; lengths and places of a prefix, suffix or middle are equally likely."""
    nothing = (False,) * n_frames
    if kind == "none" or n_frames == 1:
        return Given(nothing)
    if kind == "last":
        return Given(nothing, tail=True)
    if kind == "middle" and n_frames == 2:
        kind = "first"
    if kind == "middle":
        length = 1 + int(uniform() * (n_frames - 2))
        start = 1 + int(uniform() * (n_frames - 1 - length))
    else:
        length = 1 if kind in ("first", "both") else 1 + int(uniform() * (n_frames - 1))
        start = n_frames - length if kind == "suffix" else 0
    return Given(tuple(start <= frame < start + length for frame in range(n_frames)), tail=kind == "both")
