"""The comparison of training recipes: one measure for all predictions, and changes that are merged into settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from benchmarks.learn import ROOT, variant_settings, velocity_errors
from pipelines.recipe import Recipe, load_recipe
from tests.support.step_samples import CONFIG, noisy_batch
from training.models.dit import DiT
from training.network import Condition
from training.objectives.flow_matching import FlowMatching


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(Path(ROOT) / "pipelines" / "recipes" / "quickstart.yaml", [])


@pytest.mark.parametrize("target", ["v", "x", "eps"])
def test_models_are_measured_alike_whatever_they_predict(target: Literal["v", "x", "eps"]) -> None:
    """Predictions that give the velocity 0 have the velocity's mean square as their error, for every target."""
    objective = FlowMatching(target=target)
    config = replace(CONFIG, objective=objective)
    batch, of_velocity = noisy_batch(range(6), config=config), noisy_batch(range(6))

    class Still(torch.nn.Module):
        """A model whose predictions mean that nothing moves."""

        def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
            return [0 * noisy if target == "v" else noisy for noisy in latents]

    errors = velocity_errors(Still(), batch, objective)  # type: ignore[arg-type]
    free = [index for index in range(6) if not batch.condition.conditioning_masks[index].any()]
    assert free
    for index in free:
        assert errors[index] == pytest.approx(float(of_velocity.targets[index].square().mean()), rel=1e-3)


def test_changes_are_merged_into_the_recipes_settings(recipe: Recipe) -> None:
    settings = variant_settings(recipe, {"model": {"depth": 2}, "objective": {"target": "x"}, "lr": 1e-3}, 100)
    assert (settings.model.depth, settings.model.dim) == (2, 192)  # type: ignore[attr-defined]
    assert settings.objective == FlowMatching(target="x", time_mean=0.4)
    preset = variant_settings(recipe, {"model": DiT(preset="nano").model_dump(mode="json")}, 100)
    assert preset.model == DiT(preset="nano")
    assert (settings.lr, settings.steps, settings.decay_steps) == (1e-3, 100, 67)
