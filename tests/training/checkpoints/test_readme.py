"""The README of a model that is given away: its settings are those of the training."""

from __future__ import annotations

import yaml

from tests.support.exported_models import untrained_card
from training.checkpoints.readme import Training, model_readme
from training.conditioning import ConditioningRates
from training.models.dit import DiT
from training.settings import TrainSettings


def test_settings_of_the_readme_are_those_of_training() -> None:
    """The share of `last` is the default one; without it, the shares would not sum to 1."""
    settings = TrainSettings(
        model=DiT(depth=2, dim=48, heads=2),
        conditioning=ConditioningRates(none=0.9, first=0.08, last=0.02, conditioning_noise=0.2),
        steps=700,
    )
    recorded = settings.model_dump(mode="json") | {"seed": 3, "data": "946271c6d9cda314"}
    text = model_readme("tiny", untrained_card(), 1000, Training(recorded, [{"step": 1, "step_s": 1.0}], {"video": 3}))
    written = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["train"]
    assert TrainSettings.model_validate(written) == settings
    assert written["model"] == {"name": "dit", "depth": 2, "dim": 48, "heads": 2}
    assert written["conditioning"] == {"none": 0.9, "first": 0.08, "last": 0.02, "conditioning_noise": 0.2}
