"""The README of a model that is given away: its settings are those of the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.config import validate
from tests.support.exported_models import untrained_card
from tests.support.published_models import write_published
from training.checkpoints.model_card import AdapterCard
from training.checkpoints.readme import Training, model_readme
from training.conditioning import ConditioningRates
from training.models.diffusers import Diffusers
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
    assert "| started from | random weights |" in text
    assert written["conditioning"] == {"none": 0.9, "first": 0.08, "last": 0.02, "conditioning_noise": 0.2}


@pytest.mark.slow  # diffusers takes seconds to import
def test_adapters_of_published_models_are_sampled_alone(tmp_path: Path) -> None:
    """`--model` takes exports, which the folder of a published model is not."""
    model = validate(Diffusers, {"name": "diffusers", "path": str(write_published(tmp_path, "wan"))})
    adapter = AdapterCard(base=str(tmp_path), base_identity="0")
    text = model_readme("style", untrained_card(model=model, adapter=adapter), 1000, None)
    assert 'worldloom sample --model style --prompt "..."' in text
    assert f"| started from | {tmp_path} |" in text
    own = untrained_card(init="drawn-world", adapter=AdapterCard(base="drawn-world", base_identity="0"))
    assert "worldloom sample --model drawn-world --adapter style --prompt" in model_readme("style", own, 1000, None)
