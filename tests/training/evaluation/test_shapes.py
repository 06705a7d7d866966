"""Kind, centre, size and angle of rendered shapes."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from training.evaluation.shapes import (
    SYMMETRY,
    Measure,
    ShapeFit,
    check_kinds,
    fit,
    guess_kind,
    measure,
    render,
    shape_of,
    unit_area,
)

SIDE = np.arange(60) + 0.5
KINDS = tuple(SYMMETRY)


def coverage(kind: str, angle: float = 0.3, x: float = 29.3, sigma: float = 0.0) -> np.ndarray:
    sharp = render(ShapeFit(kind, x, 31.1, 14.0, angle), SIDE, SIDE).astype(np.float32)
    return cv2.GaussianBlur(sharp, (0, 0), sigma) if sigma else sharp


@pytest.mark.parametrize("sigma", [0.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_is_measured_sharp_or_blurred(kind: str, sigma: float) -> None:
    measured = measure(coverage(kind, sigma=sigma))
    guess = guess_kind([measured], [0.0], KINDS)
    shape = shape_of(measured, guess.kind)
    assert guess.kind == kind
    assert (shape.x, shape.y) == pytest.approx((29.3, 31.1), abs=0.05)
    assert shape.radius == pytest.approx(14.0, rel=0.02)
    if SYMMETRY[kind]:
        assert shape.angle == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("kind", ["triangle", "square", "star"])
def test_the_spin_of_a_turning_shape_is_found(kind: str) -> None:
    times = [frame / 8 for frame in range(9)]
    guess = guess_kind([measure(coverage(kind, angle=-1.7 * time)) for time in times], times, KINDS)
    assert guess.kind == kind
    assert guess.spin == pytest.approx(-1.7, abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_finds_a_shape_that_the_frame_cuts_off(kind: str) -> None:
    cut = coverage(kind, x=4.0)
    start = ShapeFit(kind, 7.0, 30.0, 14.0, 0.4)
    found = fit(cut, np.ones(cut.shape, bool), start)
    assert (found.x, found.y) == pytest.approx((4.0, 31.1), abs=0.2)
    assert found.error < 1e-3


def test_areas_are_those_of_geometry() -> None:
    assert unit_area("square") == pytest.approx(2)
    assert unit_area("triangle") == pytest.approx(3 * math.sqrt(3) / 4)
    assert unit_area("star") == pytest.approx(10 * 0.5 * 0.45 * math.sin(math.pi / 5))


def test_moments_are_complex_numbers_of_each_order() -> None:
    assert isinstance(measured := measure(coverage("star")), Measure)
    assert measured.moments_O.shape == (3,)


def test_unknown_forms_are_named() -> None:
    with pytest.raises(ValueError, match="kind hexagon; forms are known of circle"):
        check_kinds(("circle", "hexagon"))
