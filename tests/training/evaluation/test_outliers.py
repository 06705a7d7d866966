"""Values below all ordinary ones: what chance gives of them, and the rate of false alarms."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from training.evaluation.outliers import chance, fewest, flagged


def test_chance_is_the_share_of_all_orders() -> None:
    """Counted over all orders of 3 values and 4 ordinary ones."""
    orders = list(permutations(range(7)))
    for n_lower in range(5):
        right = sum(sum(rank < min(order[3:]) for rank in order[:3]) >= n_lower for order in orders)
        assert chance(n_lower, 3, 4) == pytest.approx(right / len(orders))


def test_the_fewest_is_the_first_that_chance_does_not_give() -> None:
    assert fewest(64, 256, 0.05 / 3) == 3
    assert fewest(8, 100, 0.05 / 3) == 2
    assert fewest(1, 100, 0.05 / 3) == 1
    assert fewest(2, 1, 0.05 / 3) == 3, "one ordinary value tells nothing of two"


def test_values_below_all_ordinary_ones_are_flagged_together() -> None:
    ordinary, rest = (np.arange(100) + 1.0).tolist(), [50.0] * 6
    assert flagged([0.5, 0.9, *rest], ordinary, 0.05).tolist() == [True, True, *[False] * 6]
    assert not flagged([0.5, 1.0, *rest], ordinary, 0.05).any(), "one of eight is what chance gives"
    assert flagged([0.5, 0.9, *rest], ordinary, 0.01).sum() == 2
    assert not flagged([0.5, 0.9, *rest], ordinary, 0.01, tries=2).any()


@pytest.mark.parametrize("name", ["normal", "heavy", "ties"])
def test_ordinary_clips_are_flagged_at_most_at_the_rate(name: str) -> None:
    """Of 4,000 audits of 64 ordinary clips beside 100 held-out ones, at most the stated share flags any."""
    rng = np.random.default_rng(2)
    draw = {
        "normal": lambda n: rng.normal(0.85, 0.08, n),
        "heavy": lambda n: -rng.pareto(1.0, n),
        "ties": lambda n: rng.integers(0, 30, n).astype(float),
    }[name]
    alarms = [flagged(draw(64).tolist(), draw(100).tolist(), 0.05).any() for _ in range(4000)]
    assert np.mean(alarms) < 0.05
