"""Caption recall of models that know a clip by heart, that know nothing, and beside a computation by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from training.data.dataset import Sample
from training.evaluation.caption_recall import LEVELS, caption_recall
from training.framing import full_framing
from training.network import Condition
from training.objective import ObjectiveSettings
from training.objectives.flow_matching import FlowMatching
from training.rng import generator
from training.sampling.generation import ModelParts

CAPTION, NULL = torch.full((2, 3), 0.25), torch.zeros(1, 3)


def sample() -> Sample:
    latent = torch.randn(4, 3, 8, 12, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    framing = full_framing(96, 64, 80.0)
    return Sample("clip", latent, None, CAPTION.to(torch.bfloat16), "a star", 8.0, "video", "96x64x9", framing)


class Model(nn.Module):
    """Predicts `with_caption` for the caption and `without` for the null caption: a number, or latents."""

    def __init__(self, with_caption: Tensor, without: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self._with_caption, self._without = with_caption, without

    def forward(self, latents: Sequence[Tensor], condition: Condition) -> list[Tensor]:
        assert all(float(mask_T.sum()) == 0 for mask_T in condition.conditioning_masks)
        return [
            (self._with_caption if text_NE.sum() > 0 else self._without).expand_as(noisy)
            for noisy, text_NE in zip(latents, condition.texts, strict=True)
        ]


def recall(model: nn.Module, objective: ObjectiveSettings) -> float:
    parts = SimpleNamespace(
        card=SimpleNamespace(objective=objective),
        model=model,
        null_text_NE=NULL,
        autoencoder=SimpleNamespace(time_factor=4),
    )
    return caption_recall(cast(ModelParts, parts), sample())


def test_a_model_that_ignores_the_caption_has_recall_one() -> None:
    assert recall(Model(torch.zeros(1), torch.zeros(1)), FlowMatching()) == pytest.approx(1)


@pytest.mark.parametrize("target", ["v", "x"])
def test_recall_is_the_ratio_of_losses_computed_by_hand(target: str) -> None:
    clean = sample().latent.float()
    noise = torch.randn(clean.shape, generator=generator(0, "caption recall", "clip"))
    losses = []
    for predicted in (0.5, -0.75):
        if target == "v":
            losses.append(len(LEVELS) * float(((predicted - (noise - clean)) ** 2).mean()))
        else:
            # v = (x_t - x) / t, so an error of x is one of v times 1 / t.
            losses.append(sum(float(((predicted - clean) ** 2).mean()) / level**2 for level in LEVELS))
    found = recall(Model(torch.tensor([0.5]), torch.tensor([-0.75])), FlowMatching.model_validate({"target": target}))
    assert found == pytest.approx(losses[0] / losses[1], rel=1e-5)


def test_a_clip_that_a_caption_calls_up_has_recall_near_zero() -> None:
    clean = sample().latent.float()
    objective = FlowMatching.model_validate({"target": "x"})
    assert recall(Model(clean + 0.01, torch.zeros(1)), objective) < 1e-3
    assert recall(Model(clean + 0.01, clean + 0.01), objective) == pytest.approx(1, rel=1e-3), "known without a caption"
