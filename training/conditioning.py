"""Conditioning masks: which latent frames a model is conditioned on in training, which it generates, and their noise
level.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

from pydantic import Field, model_validator

from cluster.arrays import BoolArray, Float64Array
from cluster.config import Settings

Uniform = Callable[[], float]
"""A source of independent numbers, uniform in [0, 1)."""


@dataclass(frozen=True)
class ConditioningMask:
    """The conditioning frames of one sample; the model generates all other latent frames."""

    frames: tuple[bool, ...]
    """Whether each latent frame is a conditioning frame; at least one is not."""
    last_frame: bool = False
    """Whether the last-frame latent conditions the model: the last frame encoded as an image, appended as one more
    latent frame at its own time. The last latent frame of the video, which also covers the frames before that one, is
    then generated."""
    time: float = 0.0
    """Noise level of the conditioning frames, 0 for clean."""

    def __bool__(self) -> bool:
        """Return whether there is any conditioning frame."""
        return self.last_frame or any(self.frames)


DEFAULT_RATES = {
    "none": 0.75,
    "first": 0.13,
    "last": 0.02,
    "both": 0.04,
    "prefix": 0.03,
    "suffix": 0.02,
    "middle": 0.01,
    "ends": 0.0,
}
"""Default shares of the kinds of conditioning: a quarter of the samples is conditioned, most of them on the first
frame. A share of 0 at the end leaves the quantiles of all others, and so the masks of a seed, as they are."""

KINDS = tuple(DEFAULT_RATES)


class ConditioningRates(Settings):
    """Settings of conditioning: the share of training samples with each kind of mask. The shares sum to 1.

    If any share is set, those that are not set are 0. Images are never conditioned, because they have no other frame. A
    video that is too short for `middle` or `ends` is conditioned on its first frame.
    """

    none: float = Field(DEFAULT_RATES["none"], ge=0, le=1, description="No conditioning frame: text to video.")
    first: float = Field(DEFAULT_RATES["first"], ge=0, le=1, description="The first frame: image to video.")
    last: float = Field(
        DEFAULT_RATES["last"], ge=0, le=1, description="The last frame: a video that ends in a chosen image."
    )
    both: float = Field(
        DEFAULT_RATES["both"], ge=0, le=1, description="The first and the last frame: a video between two images."
    )
    prefix: float = Field(
        DEFAULT_RATES["prefix"], ge=0, le=1, description="Any number of frames from the first on: extending forward."
    )
    suffix: float = Field(
        DEFAULT_RATES["suffix"], ge=0, le=1, description="Any number of frames up to the last: extending backward."
    )
    middle: float = Field(
        DEFAULT_RATES["middle"],
        ge=0,
        le=1,
        description="Some frames with generated ones on both sides: extending both ways.",
    )
    ends: float = Field(
        DEFAULT_RATES["ends"],
        ge=0,
        le=1,
        description="Frames from the first on and up to the last, with generated ones between: connecting two videos.",
    )
    conditioning_noise: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Highest noise level of conditioning frames. The level is drawn per sample and the model sees it, "
        "so that it tolerates flawed conditioning frames when sampling (as Ho et al. 2021, section 4.2, do with "
        "cascades). 0 keeps them clean.",
    )

    @model_validator(mode="after")
    def _unset_shares_are_0(self) -> ConditioningRates:
        if self.model_fields_set & DEFAULT_RATES.keys():
            for kind in DEFAULT_RATES.keys() - self.model_fields_set:
                # Settings are frozen only after this. A validator that runs before the fields would get JSON input as
                # Python input, for which pydantic has other rules.
                object.__setattr__(self, kind, 0.0)
        return self

    @model_validator(mode="after")
    def _shares_sum_to_1(self) -> ConditioningRates:
        rates = self.shares()
        total = sum(rates.values())
        if abs(total - 1) > 1e-6:
            terms = " + ".join(f"{kind} {rate:g}" for kind, rate in rates.items()) or "the sum of all"
            raise ValueError(f"{terms} is {total:g}; the shares must sum to 1")
        return self

    @property
    def uses_last_frame(self) -> bool:
        """Whether any sample is conditioned on its last-frame latent."""
        return self.last + self.both > 0

    def _rates(self) -> dict[str, float]:
        return {kind: getattr(self, kind) for kind in DEFAULT_RATES}

    def shares(self) -> dict[str, float]:
        """Return the shares above 0 by kind."""
        return {kind: rate for kind, rate in self._rates().items() if rate}

    def kinds(self) -> frozenset[str]:
        """Return the kinds of conditioning that samples have."""
        return frozenset(self.shares())

    def draw_mask(self, quantile: float, uniform: Uniform, n_frames: int) -> ConditioningMask:
        """Return the mask of a sample of `n_frames` latent frames.

        Its `quantile` in [0, 1) selects the kind; `uniform` draws which frames and their noise level.
        """
        kind = KINDS[bisect_right(self._upper_quantiles(), quantile)]
        mask = mask_of_kind(kind, n_frames, uniform)
        return replace(mask, time=self.conditioning_noise * uniform()) if mask else mask

    def has_last_frame(self, quantiles_N: Float64Array) -> BoolArray:
        """Return `[N]`: whether `draw_mask` conditions videos with these quantiles on their last-frame latent."""
        upper = dict(zip(KINDS, self._upper_quantiles(), strict=True))
        # `last` and `both` are adjacent kinds.
        result: BoolArray = (quantiles_N >= upper["first"]) & (quantiles_N < upper["both"])
        return result

    def _upper_quantiles(self) -> list[float]:
        """Return the end of each kind's range of quantiles, in the sequence of `KINDS`."""
        ends = list(accumulate(self._rates().values()))
        # The shares sum to 1 up to rounding. Dividing makes the last end exactly 1, above every quantile.
        return [end / ends[-1] for end in ends]


def mask_of_kind(kind: str, n_frames: int, uniform: Uniform) -> ConditioningMask:
    """Return a mask of this kind for `n_frames` latent frames, with clean conditioning frames.

    All lengths and positions of a prefix, suffix, middle or generated part between two ends are equally likely. A video
    of two latent frames has none of the last two, and is conditioned on its first frame.
    """
    nothing = (False,) * n_frames
    if kind == "none" or n_frames == 1:
        return ConditioningMask(nothing)
    if kind == "last":
        return ConditioningMask(nothing, last_frame=True)
    if kind in ("middle", "ends") and n_frames == 2:
        kind = "first"
    if kind in ("middle", "ends"):
        # The frames inside: given ones of a middle, generated ones between two ends.
        length = 1 + int(uniform() * (n_frames - 2))
        start = 1 + int(uniform() * (n_frames - 1 - length))
    else:
        length = 1 if kind in ("first", "both") else 1 + int(uniform() * (n_frames - 1))
        start = n_frames - length if kind == "suffix" else 0
    frames = tuple((start <= frame < start + length) != (kind == "ends") for frame in range(n_frames))
    return ConditioningMask(frames, last_frame=kind == "both")
