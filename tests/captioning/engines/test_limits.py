"""The limits of engine openai one by one: backoff, rate, and the window of concurrent requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.engines._limits import ConcurrencyWindow, RateLimit, backoff_s


def test_backoff_doubles_and_follows_from_the_key() -> None:
    waits = [backoff_s(attempts, "a") for attempts in range(1, 50)]
    assert waits == [backoff_s(attempts, "a") for attempts in range(1, 50)]
    assert waits != [backoff_s(attempts, "b") for attempts in range(1, 50)]
    assert all(0.5 <= wait / min(60, 2 ** (attempts - 1)) < 1 for attempts, wait in enumerate(waits, start=1))
    assert backoff_s(10**6, "a") <= 60


@pytest.mark.slow
@given(st.floats(0.1, 1e4), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), min_size=1))
def test_rate_holds_over_any_interval(per_minute: float, requested: list[tuple[float, float]]) -> None:
    rate, now_s, taken = RateLimit(per_minute), 0.0, []
    for after_s, amount in requested:
        now_s += after_s
        now_s += rate.wait_s(now_s)
        rate.take(amount, now_s)
        taken.append((now_s, amount))
    for i, (start_s, _) in enumerate(taken):
        total = sum(amount for _, amount in taken[i:-1])
        assert total <= (taken[-1][0] - start_s) * per_minute / 60 * (1 + 1e-6) + 1e-6


def test_refusals_of_requests_in_flight_are_one_pause() -> None:
    window = ConcurrencyWindow(8)
    assert window.on_refusal(0.0, 5.0, 20.0) == 20.0
    assert window.on_refusal(1.0, 6.0, None) is None
    assert window.wait_s(6.0) == 19.0
    assert window.on_refusal(2.0, 7.0, 30.0) is None
    assert window.wait_s(7.0) == 30.0
    assert window.size == 4


def test_window_halves_on_refusals_and_grows_on_answers() -> None:
    window = ConcurrencyWindow(8)
    window.on_refusal(0.0, 5.0, 32.0)
    assert window.size == 4
    pause_s = window.on_refusal(40.0, 41.0, None)
    assert pause_s is not None
    assert 1 <= pause_s < 2, "the second in a row without an answer between"
    assert window.size == 2
    sizes = []
    for _ in range(40):
        window.on_answer()
        sizes.append(window.size)
    assert sizes == sorted(sizes)
    assert sizes[-1] == 8
