"""Patterns of the names of weights, by which some stay as they are and others have a learning rate of their own.

A pattern is a whole name in which `*` stands for any characters, such as `blocks.0.*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from cluster.config import list_names
from training.network import VideoModel, trained_parameters
from training.settings import TrainSettings

MAX_NAMED = 4
"""Most names that a message shows."""


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Let the weights whose names match a pattern require no gradient.

    Raises `ValueError` for a pattern that no name matches, and if no weight is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        for name in matching(list(named), pattern, "frozen"):
            named[name].requires_grad_(False)
    if not trained_parameters(model):
        raise ValueError("frozen: no weight is left to train; remove a pattern")


def lr_factors(model: nn.Module, scales: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of the learning rate of each weight that trains, 1 for one that no pattern matches.

    Raises `ValueError` for a pattern that none of them matches, and for a weight that two patterns match.
    """
    names = [name for name, _ in trained_parameters(model)]
    patterns = {pattern: matching(names, pattern, "lr_scale") for pattern in scales}
    factors: dict[str, float] = {}
    for pattern, found in patterns.items():
        for name in found:
            if name in factors:
                both = list_names([one for one, matched in patterns.items() if name in matched], MAX_NAMED)
                raise ValueError(
                    f"lr_scale: {name} matches {both}; a weight has one factor: make the patterns narrower"
                )
            factors[name] = scales[pattern]
    return {name: factors.get(name, 1.0) for name in names}


def matching(names: Sequence[str], pattern: str, key: str) -> list[str]:
    """Return the names that match a pattern of a setting. Raises `ValueError` if there are none."""
    if found := [name for name in names if fnmatchcase(name, pattern)]:
        return found
    raise ValueError(
        f"{key}: {pattern} matches no weight that trains; names are such as {list_names(list(names), MAX_NAMED)}"
    )


def check_patterns(settings: TrainSettings, model: VideoModel) -> None:
    """Raise `ValueError` for a pattern of the settings that no weight of a model matches."""
    freeze(model, settings.frozen)
    lr_factors(model, settings.lr_scale)
