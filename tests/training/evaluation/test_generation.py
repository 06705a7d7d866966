"""Clips of an evaluation: they are generated with every setting of the solver."""

from __future__ import annotations

from typing import Any, cast

import pytest

from cluster.config import validate
from tests.support.exported_models import untrained_card
from training.evaluation.generation import Generation, Prompt
from training.evaluation.settings import EvaluateSettings
from training.sampling.exported_model import ExportedModel
from training.sampling.settings import VideoShape


class Exported:
    """An export of which the card alone is there."""

    card = untrained_card()


def key_of(**settings: Any) -> str:
    model = cast(ExportedModel, Exported())
    generation = Generation(model, validate(EvaluateSettings, settings), (), "folder")
    return generation.key(Prompt("a", "a ball", VideoShape(9, 32, 48, 8.0), 0), "generated")


@pytest.mark.parametrize(
    "settings", [{"solver": "euler"}, {"guidance_method": "apg"}, {"guidance_low_noise": 3.0}, {"steps": 3}]
)
def test_every_setting_of_the_solver_counts(settings: dict[str, Any]) -> None:
    assert key_of(**settings) != key_of()
    assert key_of(clips=3) == key_of()


def test_guidance_by_a_second_model_is_refused() -> None:
    with pytest.raises(ValueError, match="autoguidance samples with a second model, and evaluate has one"):
        validate(EvaluateSettings, {"guidance_method": {"name": "autoguidance", "export": "./weaker"}})
