"""The README of a model that is given away: its settings are those of the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from cluster.config import validate
from tests.support.exported_models import untrained_card
from tests.support.published_models import write_published
from training.checkpoints.model_card import AdapterCard
from training.checkpoints.readme import ModelRecord, Training, model_data, model_readme
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
    training = Training(recorded, [{"step": 1, "step_s": 1.0}], {"video": 3})
    text = model_readme(ModelRecord("tiny", untrained_card(), 1000, training))
    written = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["train"]
    assert TrainSettings.model_validate(written) == settings
    assert written["model"] == {"name": "dit", "depth": 2, "dim": 48, "heads": 2}
    assert "| started from | random weights |" in text
    assert written["conditioning"] == {"none": 0.9, "first": 0.08, "last": 0.02, "conditioning_noise": 0.2}


def test_a_readme_says_what_was_measured_and_marked() -> None:
    estimate = {"mean": 0.75, "low": 0.7, "high": 0.8, "cases": 40}
    row = {"metric": "number", "unit": "", "better": "high", "target": None, "generated": estimate}
    nearest = [{"ratio": 1.0}] * 20
    found = {"metrics": [row], "memorisation": {"share_nearer": 0.05, "generated": nearest, "held_out": nearest}}
    audit = {"rate": 0.05, "clips": 64, "seeds": 2, "flagged": [], "tests": {}}
    record = ModelRecord(
        "tiny", untrained_card(), 1000, None, found, audit, license="apache-2.0", unmarked=("watermark",)
    )
    text, data = model_readme(record), model_data(record)
    assert "| number | high |  |  | 0.75 [0.7, 0.8] of 40 |  |" in text
    assert "5.0% of 20 clips generated from held-out captions are nearer" in text
    assert "Of 64 training clips that `worldloom audit --model` tested" in text
    assert "none of them is flagged; at most 5% of audits" in text
    assert data["audit"] == {"rate": 0.05, "clips": 64, "seeds": 2, "flagged": 0}
    assert "| marks of its samples | no watermark |" in text
    assert data["memorisation"] == {"share_nearer": 0.05, "generated": 20, "held_out": 20}
    assert data["license"] == "apache-2.0"
    assert json.loads(json.dumps(data)) == data
    head = ModelCard(text).data
    assert (head.license, head.pipeline_tag, head.library_name) == ("apache-2.0", "text-to-video", "worldloom")
    assert [(one.metric_type, one.metric_value) for one in head.eval_results] == [("number", 0.75)]


@pytest.mark.slow  # diffusers takes seconds to import
def test_adapters_of_published_models_are_sampled_alone(tmp_path: Path) -> None:
    """`--model` takes exports, which the folder of a published model is not."""
    model = validate(Diffusers, {"name": "diffusers", "path": str(write_published(tmp_path, "wan"))})
    adapter = AdapterCard(base=str(tmp_path), base_identity="0")
    text = model_readme(ModelRecord("style", untrained_card(model=model, adapter=adapter), 1000))
    assert 'worldloom sample --model style --prompt "..."' in text
    assert f"| started from | {tmp_path} |" in text
    own = untrained_card(init="drawn-world", adapter=AdapterCard(base="drawn-world", base_identity="0"))
    assert "worldloom sample --model drawn-world --adapter style --prompt" in model_readme(
        ModelRecord("style", own, 1000)
    )
