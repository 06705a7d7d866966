"""Combinations that training footage never has, so that held-out footage can show what a model has not seen together.

A fixed rule holds out one colour and one action of every kind of shape, as in a Latin square: each kind, colour and
action is common in training footage; only these pairs are not.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.scenes.draw import COLOURS, KINDS, Body
from pipelines.scenes.scene import ACTIONS

HELD_OUT_COLOURS = {kind: list(COLOURS)[(2 * k + 5) % len(COLOURS)] for k, kind in enumerate(KINDS)}
"""The colour that no shape of a kind has in training footage."""

HELD_OUT_ACTIONS = {kind: ACTIONS[(3 - k) % len(ACTIONS)] for k, kind in enumerate(KINDS)}
"""The action in which no shape of a kind takes part in training footage."""

HELD_OUT_PAIRS = (*HELD_OUT_COLOURS.items(), *HELD_OUT_ACTIONS.items())
"""All pairs of a kind with a colour or an action that training footage never has."""


def has_held_out_pair(bodies: Sequence[Body], action: str) -> bool:
    """Return whether a shape has its kind's held-out colour, or takes part in its kind's held-out action."""
    return any(body.colour == HELD_OUT_COLOURS[body.kind] or action == HELD_OUT_ACTIONS[body.kind] for body in bodies)
