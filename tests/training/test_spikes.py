"""Gradient norms: what is a spike, and that norms which stay high stop being one."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from training.spikes import MIN_NORMS, WINDOW, SpikeDetector


def fed(factor: float | None, norms: list[float]) -> SpikeDetector:
    guard = SpikeDetector(factor)
    for norm in norms:
        guard.add(norm)
    return guard


def test_there_is_no_bound_without_a_factor_or_enough_norms() -> None:
    assert fed(None, [1.0] * 500).limit() == math.inf
    assert fed(5, [1.0] * (MIN_NORMS - 1)).limit() == math.inf
    assert fed(5, [1.0] * MIN_NORMS).limit() == 5


def test_spikes_do_not_move_the_bound_but_a_new_level_does() -> None:
    guard = fed(5, [1.0] * WINDOW)
    for _ in range(WINDOW // 2 - 1):
        guard.add(100.0)
    assert guard.limit() == 5
    guard.add(100.0)
    guard.add(100.0)
    assert guard.limit() == 500


@given(norms=st.lists(st.floats(0, 1e6), max_size=2 * WINDOW), split=st.integers(0, 2 * WINDOW))
def test_it_goes_on_from_its_state(norms: list[float], split: int) -> None:
    whole = fed(3, norms)
    resumed = SpikeDetector(3, fed(3, norms[:split]).norms)
    for norm in norms[split:]:
        resumed.add(norm)
    assert resumed.norms == whole.norms
    assert resumed.limit() == whole.limit()
    assert len(whole.norms) <= WINDOW
