"""Prefixes of names of weights that are in excess or missing."""

from __future__ import annotations

from training.weight_names import prefix_fault

NAMES = ["blocks.0.weight", "blocks.0.bias", "out.weight"]


def test_a_prefix_in_excess_or_missing_is_named() -> None:
    longer = [f"module.net.{name}" for name in NAMES]
    assert prefix_fault(NAMES, longer) == (
        "its keys begin with module.net., and this model's do not; remove module.net. from the keys"
    )
    assert prefix_fault(longer, NAMES) == (
        "its keys lack module.net., with which this model's begin; put module.net. before the keys"
    )


def test_other_differences_are_no_prefix() -> None:
    assert prefix_fault(NAMES, NAMES) == ""
    assert prefix_fault(NAMES, NAMES[1:]) == ""
    assert prefix_fault(NAMES[1:], NAMES) == ""
    assert prefix_fault(NAMES, ["layers.0.weight"]) == ""
