"""Tests of the costs of samples."""

from __future__ import annotations

from training.data.costs import MAX_COST, SampleCosts, Work


def test_costs_are_integers_in_proportion() -> None:
    work = {
        "long": (Work(9, 3e15), Work(10, 3.6e15)),
        "image": (Work(1, 1e12), Work(1, 1e12)),
        "short": (Work(5, 1.5e15), Work(6, 2e15)),
    }
    costs = SampleCosts(work).table(["image", "long", "short"])
    assert costs.tolist() == [
        [round(MAX_COST / 3000)] * 2,
        [MAX_COST, round(MAX_COST * 1.2)],
        [MAX_COST // 2, round(MAX_COST / 1.5)],
    ]
    assert SampleCosts.from_tokens({"a": (2, 3), "b": (1, 1)}).table(["b", "a"]).tolist() == [
        [MAX_COST // 2] * 2,
        [MAX_COST, MAX_COST * 3 // 2],
    ]
