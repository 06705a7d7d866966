"""Which frames are given, how often, and at which noise level."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import validate
from training.conditioning import DEFAULT_RATES, ConditioningRates, ConditioningMask, mask_of_kind

KINDS = sorted(DEFAULT_RATES)


@given(kind=st.sampled_from(KINDS), n_frames=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_what_is_given_is_what_its_name_says(kind: str, n_frames: int, seed: int) -> None:
    given = mask_of_kind(kind, n_frames, random.Random(seed).random)
    assert len(given.frames) == n_frames
    assert not all(given.frames), "something is left to generate"
    places = [place for place, is_given in enumerate(given.frames) if is_given]
    if kind == "none" or n_frames == 1:
        assert (places, given.tail, bool(given)) == ([], False, False)
        return
    assert given
    assert given.tail == (kind in ("last", "both")), (
        "the last picture is given by itself, and never as a latent frame of several"
    )
    if kind == "last":
        assert places == []
        return
    assert places == list(range(places[0], places[-1] + 1)), "one run"
    if kind in ("first", "both", "prefix") or (n_frames == 2 and kind == "middle"):
        assert places[0] == 0
    elif kind == "suffix":
        assert places[-1] == n_frames - 1
    else:
        assert 0 < places[0] <= places[-1] < n_frames - 1
    assert kind not in ("first", "both") or len(places) == 1


@pytest.mark.parametrize(("kind", "n_runs"), [("prefix", 4), ("suffix", 4), ("middle", 6)])
def test_every_length_and_place_occurs(kind: str, n_runs: int) -> None:
    """Of 5 frames: 1 to 4 at an end, or 1 to 3 inside at any place."""
    chance = random.Random(0)
    seen = Counter(mask_of_kind(kind, 5, chance.random) for _ in range(4000))
    assert len(seen) == n_runs
    assert min(seen.values()) > 300


def test_rates_hold_over_many_draws() -> None:
    rates = ConditioningRates(none=0.4, first=0.1, last=0.1, both=0.1, prefix=0.1, suffix=0.1, middle=0.1)
    chance = random.Random(0)
    seen = Counter(rates.draw(chance.random(), chance.random, 9) for _ in range(20000))
    nothing, first = (False,) * 9, (True, *(False,) * 8)
    assert seen[ConditioningMask(nothing)] / 20000 == pytest.approx(0.4, abs=0.015)
    assert seen[ConditioningMask(nothing, tail=True)] / 20000 == pytest.approx(0.1, abs=0.01)
    assert seen[ConditioningMask(first, tail=True)] / 20000 == pytest.approx(0.1, abs=0.01)
    assert seen[ConditioningMask(first)] / 20000 == pytest.approx(0.1 + 0.1 / 8, abs=0.01)


def test_an_image_is_never_given() -> None:
    chance = random.Random(0)
    rates = ConditioningRates(first=0.3, last=0.2, both=0.2, prefix=0.3, conditioning_noise=0.1)
    assert {rates.draw(chance.random(), chance.random, 1) for _ in range(50)} == {
        rates.draw(chance.random(), chance.random, 1)
    }
    assert not rates.draw(chance.random(), chance.random, 1)


def test_given_frames_are_clean_or_have_a_noise_level_of_their_own() -> None:
    chance = random.Random(0)
    assert {ConditioningRates(first=0.5, last=0.5).draw(chance.random(), chance.random, 3).time for _ in range(20)} == {
        0.0
    }
    noisy = [
        ConditioningRates(first=0.5, last=0.5, conditioning_noise=0.3).draw(chance.random(), chance.random, 3).time
        for _ in range(2000)
    ]
    assert min(noisy) > 0
    assert max(noisy) <= 0.3
    assert sum(noisy) / 2000 == pytest.approx(0.15, abs=0.01)


def test_what_is_written_is_all_there_is() -> None:
    """A recipe that names some rates has no others, as when there were only `none` and `first`."""
    assert validate(ConditioningRates, {"none": 0.5, "first": 0.5}).model_dump() == dict.fromkeys(
        DEFAULT_RATES, 0.0
    ) | {
        "none": 0.5,
        "first": 0.5,
        "given_noise": 0.0,
    }
    default = validate(ConditioningRates, {"given_noise": 0.1})
    assert default.model_dump() == DEFAULT_RATES | {"given_noise": 0.1}
    assert validate(ConditioningRates, default.model_dump()) == default


def test_rates_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"none 0\.5 \+ first 0\.25 is 0\.75; the shares must sum to 1"):
        validate(ConditioningRates, {"none": 0.5, "first": 0.25})
