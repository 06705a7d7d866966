"""Outliers below ordinary values: their probabilities, and the rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.outliers import MIN_ORDINARY, Ordinary, flagged


def test_probabilities_are_the_share_of_ordinary_values() -> None:
    ordinary = Ordinary(np.arange(100) / 100)
    assert ordinary.probabilities([0.5, 0.5 - 1e-9, 2.0]) == pytest.approx([52 / 101, 51 / 101, 1.0])
    # The ten lowest are 0.00 to 0.09, on average 0.055 below 0.10.
    assert ordinary.probabilities([-0.3])[0] == pytest.approx(11 / 101 * np.exp(-0.4 / 0.055))


def test_probabilities_rise_with_the_value() -> None:
    values = np.random.default_rng(0).gamma(20, 0.05, 200)
    found = Ordinary(values).probabilities(np.linspace(-1, 3, 400))
    assert (np.diff(found) >= 0).all()
    assert 0 < found[0] < 1e-6
    assert found[-1] == 1.0


def test_the_value_of_a_probability_has_that_probability() -> None:
    ordinary = Ordinary(np.random.default_rng(1).normal(1, 0.1, 300))
    for probability in (1e-6, 1e-3, 0.05):
        assert ordinary.probabilities([ordinary.value_at(probability)])[0] == pytest.approx(probability)
    assert ordinary.value_at(0.9) == ordinary.value_at(31 / 301), "above the tail, its upper end"


def test_equal_ordinary_values_flag_what_is_lower() -> None:
    found = Ordinary([1.0] * 30).probabilities([1.0, 0.99])
    assert found.tolist() == [1.0, 0.0]


def test_too_few_ordinary_values_are_refused() -> None:
    with pytest.raises(ValueError, match=f"19 values tell too little of others; at least {MIN_ORDINARY}"):
        Ordinary([1.0] * 19)


def test_the_procedure_of_benjamini_and_hochberg() -> None:
    # The example of their article, section 3.3: 15 tests, of which four are rejected at 5 %.
    probabilities = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719]
    probabilities += [0.6528, 0.7590, 1.0]
    assert flagged(probabilities, 0.05).sum() == 4
    shuffled = np.random.default_rng(0).permutation(15)
    assert flagged(np.array(probabilities)[shuffled], 0.05).tolist() == (shuffled < 4).tolist()
    assert flagged([], 0.05).tolist() == []
    assert flagged([0.2, 0.3], 0.05).tolist() == [False, False]


@pytest.mark.parametrize("name", ["normal", "gamma", "uniform"])
def test_ordinary_clips_are_flagged_at_most_at_the_rate(name: str) -> None:
    """Of 2,000 audits of 64 ordinary clips beside 100 held-out ones, about the stated share flags any."""
    rng = np.random.default_rng(2)
    draw = {
        "normal": lambda n: rng.normal(0.85, 0.08, n),
        "gamma": lambda n: rng.gamma(9, 0.1, n),
        "uniform": lambda n: rng.uniform(0.4, 1.0, n),
    }[name]
    alarms = [flagged(Ordinary(draw(100)).probabilities(draw(64)), 0.05).any() for _ in range(2000)]
    assert np.mean(alarms) < 0.06
