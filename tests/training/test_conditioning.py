"""Conditioning masks: their frames, how often each kind is drawn, and their noise level."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import validate
from training.conditioning import DEFAULT_RATES, ConditioningMask, ConditioningRates, mask_of_kind

KINDS = sorted(DEFAULT_RATES)


@given(kind=st.sampled_from(KINDS), n_frames=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_a_mask_is_what_its_kind_says(kind: str, n_frames: int, seed: int) -> None:
    mask = mask_of_kind(kind, n_frames, random.Random(seed).random)
    assert len(mask.frames) == n_frames
    assert not all(mask.frames), "at least one frame is generated"
    indices = [index for index, is_conditioning in enumerate(mask.frames) if is_conditioning]
    if kind == "none" or n_frames == 1:
        assert (indices, mask.last_frame, bool(mask)) == ([], False, False)
        return
    assert mask
    assert mask.last_frame == (kind in ("last", "both")), "the last frame conditions only as its own latent"
    if kind == "last":
        assert indices == []
        return
    if kind == "ends" and n_frames > 2:
        assert (indices[0], indices[-1]) == (0, n_frames - 1)
        generated = [index for index in range(n_frames) if index not in indices]
        assert generated == list(range(generated[0], generated[-1] + 1)), "generated frames are consecutive"
        return
    assert indices == list(range(indices[0], indices[-1] + 1)), "conditioning frames are consecutive"
    if kind in ("first", "both", "prefix") or (n_frames == 2 and kind in ("middle", "ends")):
        assert indices[0] == 0
    elif kind == "suffix":
        assert indices[-1] == n_frames - 1
    else:
        assert 0 < indices[0] <= indices[-1] < n_frames - 1
    assert kind not in ("first", "both") or len(indices) == 1


@pytest.mark.parametrize(("kind", "n_masks"), [("prefix", 4), ("suffix", 4), ("middle", 6), ("ends", 6)])
def test_every_length_and_position_occurs(kind: str, n_masks: int) -> None:
    """Of 5 frames, 1 to 4 at an end, or 1 to 3 given or generated ones at any position inside."""
    rng = random.Random(0)
    seen = Counter(mask_of_kind(kind, 5, rng.random) for _ in range(4000))
    assert len(seen) == n_masks
    assert min(seen.values()) > 300


@pytest.mark.slow
def test_rates_hold_over_many_draws() -> None:
    rates = ConditioningRates(none=0.4, first=0.1, last=0.1, both=0.1, prefix=0.1, suffix=0.1, middle=0.1)
    rng = random.Random(0)
    seen = Counter(rates.draw_mask(rng.random(), rng.random, 9) for _ in range(20000))
    nothing, first = (False,) * 9, (True, *(False,) * 8)
    assert seen[ConditioningMask(nothing)] / 20000 == pytest.approx(0.4, abs=0.015)
    assert seen[ConditioningMask(nothing, last_frame=True)] / 20000 == pytest.approx(0.1, abs=0.01)
    assert seen[ConditioningMask(first, last_frame=True)] / 20000 == pytest.approx(0.1, abs=0.01)
    assert seen[ConditioningMask(first)] / 20000 == pytest.approx(0.1 + 0.1 / 8, abs=0.01)


def test_an_image_is_never_conditioned() -> None:
    rng = random.Random(0)
    rates = ConditioningRates(first=0.3, last=0.2, both=0.2, prefix=0.3, conditioning_noise=0.1)
    masks = {rates.draw_mask(rng.random(), rng.random, 1) for _ in range(50)}
    assert masks == {rates.draw_mask(rng.random(), rng.random, 1)}
    assert not rates.draw_mask(rng.random(), rng.random, 1)


def test_conditioning_frames_are_clean_or_noisy_as_set() -> None:
    rng = random.Random(0)
    clean = ConditioningRates(first=0.5, last=0.5)
    assert {clean.draw_mask(rng.random(), rng.random, 3).time for _ in range(20)} == {0.0}
    noisy = ConditioningRates(first=0.5, last=0.5, conditioning_noise=0.3)
    levels = [noisy.draw_mask(rng.random(), rng.random, 3).time for _ in range(2000)]
    assert min(levels) > 0
    assert max(levels) <= 0.3
    assert sum(levels) / 2000 == pytest.approx(0.15, abs=0.01)


def test_shares_that_are_not_set_are_0() -> None:
    """A recipe that sets some shares has no others, as when there were only `none` and `first`."""
    some = validate(ConditioningRates, {"none": 0.5, "first": 0.5})
    expected = dict.fromkeys(DEFAULT_RATES, 0.0) | {"none": 0.5, "first": 0.5, "conditioning_noise": 0.0}
    assert some.model_dump() == expected
    default = validate(ConditioningRates, {"conditioning_noise": 0.1})
    assert default.model_dump() == DEFAULT_RATES | {"conditioning_noise": 0.1}
    assert validate(ConditioningRates, default.model_dump()) == default


def test_a_kind_without_a_share_changes_no_mask() -> None:
    """A seed's masks are the same as before the kind was there, so runs resume to the bit."""
    kinds = [kind for kind in DEFAULT_RATES if kind != "ends"]
    rates, ends = ConditioningRates(), [sum(DEFAULT_RATES[kind] for kind in kinds[: n + 1]) for n in range(len(kinds))]
    for quantile in (0.0, 0.5, *(end - 1e-9 for end in ends)):
        expected = next(kind for kind, end in zip(kinds, ends, strict=True) if quantile < end)
        drawn, masked = (random.Random(1).random for _ in range(2))
        assert rates.draw_mask(quantile, drawn, 6) == mask_of_kind(expected, 6, masked)
    assert "ends" not in kinds
    assert all(
        ConditioningRates(ends=1.0).draw_mask(q, random.Random(0).random, 6).frames[::5] == (True, True)
        for q in (0.0, 0.999)
    )


def test_rates_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"none 0\.5 \+ first 0\.25 is 0\.75; the shares must sum to 1"):
        validate(ConditioningRates, {"none": 0.5, "first": 0.25})
