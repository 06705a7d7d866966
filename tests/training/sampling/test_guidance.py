"""Guidance: each kind against its formula's defining properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cluster.plugins import build, names
from training.sampling.guidance import FOLDER, Guidance, VelocityPair

SETTINGS: dict[str, dict[str, Any]] = {"autoguidance": {"export": "weaker"}}


def guidance(name: str, **settings: Any) -> Guidance:
    return build(FOLDER, Guidance, {"name": name, **SETTINGS.get(name, {}), **settings})


def pair(time: float = 0.5) -> VelocityPair:
    conditional, worse, noisy = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    for tensor in (conditional, worse, noisy):
        tensor[:, :1] = 0  # a conditioning frame
    return VelocityPair(conditional, worse, noisy, time)


def dot(left: Tensor, right: Tensor) -> float:
    return float((left.double() * right.double()).sum())


@pytest.mark.parametrize("name", names(FOLDER))
def test_scale_1_is_the_conditional_velocity(name: str) -> None:
    torch.testing.assert_close(guidance(name).guide(pair(), 1.0), pair().conditional)


@pytest.mark.parametrize("name", names(FOLDER))
def test_equal_velocities_and_conditioning_frames_stay(name: str) -> None:
    one = pair()
    guided = guidance(name).guide(one, 5.0)
    assert guided[:, :1].eq(0).all()
    same = VelocityPair(one.conditional, one.conditional, one.noisy, one.time)
    torch.testing.assert_close(guidance(name).guide(same, 5.0), one.conditional)


@pytest.mark.parametrize("name", names(FOLDER))
def test_zero_velocities_give_no_nan(name: str) -> None:
    zeros = torch.zeros(4, 2, 3, 3)
    assert guidance(name).guide(VelocityPair(zeros, zeros, zeros, 0.5), 5.0).equal(zeros)


@pytest.mark.parametrize("name", ["plain", "autoguidance"])
def test_plain_guidance_extrapolates(name: str) -> None:
    one = VelocityPair(torch.tensor([2.0]), torch.tensor([1.0]), torch.zeros(1), 0.5)
    assert [float(guidance(name).guide(one, scale)) for scale in (0, 1, 5)] == [1, 2, 6]


def test_cfg_zero_star_fits_the_worse_velocity() -> None:
    """At scale 0 the result is the projection of the conditional velocity on the worse one."""
    one = pair()
    fitted = guidance("cfg_zero_star").guide(one, 0.0)
    assert dot(one.conditional - fitted, one.worse) == pytest.approx(0, abs=1e-4)
    larger = VelocityPair(one.conditional, 7 * one.worse, one.noisy, one.time)
    torch.testing.assert_close(
        guidance("cfg_zero_star").guide(larger, 5.0), guidance("cfg_zero_star").guide(one, 5.0), rtol=1e-4, atol=1e-5
    )


def test_cfg_zero_star_moves_nothing_at_noise_level_1() -> None:
    assert guidance("cfg_zero_star").guide(pair(1.0), 5.0).eq(0).all()
    assert guidance("cfg_zero_star", zero_init=False).guide(pair(1.0), 5.0).ne(0).any()


def test_apg_never_moves_along_the_clean_prediction() -> None:
    one = pair()
    clean = one.noisy - one.time * one.conditional
    push = guidance("apg").guide(one, 5.0) - one.conditional
    assert dot(push, clean) == pytest.approx(0, abs=1e-3)
    plain = guidance("plain").guide(one, 5.0)
    torch.testing.assert_close(guidance("apg", parallel=1.0).guide(one, 5.0), plain, rtol=1e-4, atol=1e-5)
    # What is left of the push is the same as that of plain guidance.
    along = dot(plain - one.conditional, clean) / dot(clean, clean) * clean
    torch.testing.assert_close(push, plain - one.conditional - along, rtol=1e-4, atol=1e-5)


def test_guidance_is_off_outside_its_interval_and_at_scale_1() -> None:
    within = guidance("plain", interval=[0.2, 0.8])
    assert [within.active(time, 5.0) for time in (1.0, 0.8, 0.5, 0.2, 0.1)] == [False, True, True, True, False]
    assert not within.active(0.5, 1.0)
    assert guidance("plain").active(1.0, 5.0)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_intervals_are_refused(interval: tuple[float, float]) -> None:
    with pytest.raises((ValidationError, ValueError), match="must rise and lie within 0 and 1"):
        guidance("plain", interval=interval)


def test_autoguidance_needs_a_weaker_model() -> None:
    with pytest.raises(ValueError, match="export"):
        build(FOLDER, Guidance, "autoguidance")
