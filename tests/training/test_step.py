"""A training step's mathematics: chance keyed on samples, given frames kept clean, and losses of samples alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training.conditioning import ConditioningRates
from training.model import Condition
from training.models.dit import DiT
from training.objectives.flow_matching import FlowMatching
from training.step import Inputs, Task, draw, generator, losses, prepare

CPU = torch.device("cpu")
TASK = Task(
    model=DiT(depth=1, dim=32, heads=2),
    objective=FlowMatching(),
    conditioning=ConditioningRates(none=0.5, first=0.5),
    caption_drop=0.3,
    null_text=torch.zeros(1, 8),
    time_factor=4,
    space_factor=8,
    seed=7,
)
UIDS = [f"clip-{index}" for index in range(12)]


def batch(indices: list[int], epoch: int = 0, task: Task = TASK) -> Inputs:
    latents = torch.randn(12, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    texts = [torch.full((1 + index % 3, 8), float(index + 1)) for index in range(12)]
    return prepare(task, latents[indices], [texts[i] for i in indices], [UIDS[i] for i in indices], torch.full((len(indices),), 8.0), epoch, CPU)


def test_a_sample_sees_the_same_noise_in_any_batch() -> None:
    together, alone = batch(list(range(12))), batch([5])
    assert together.noisy_BCTHW[5].equal(alone.noisy_BCTHW[0])
    assert together.target_BCTHW[5].equal(alone.target_BCTHW[0])
    assert together.condition.time_BT[5].equal(alone.condition.time_BT[0])
    assert together.condition.texts[5].equal(alone.condition.texts[0])


def test_epochs_samples_and_seeds_see_different_noise() -> None:
    noises = [draw(replace(TASK, seed=seed), (3, 1, 4, 4), epoch, uid).noise_CTHW for seed in (1, 2) for epoch in (0, 1) for uid in ("a", "b")]
    assert all(not first.equal(second) for index, first in enumerate(noises) for second in noises[:index])


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    batch([0, 1])
    assert torch.get_rng_state().equal(before)


def test_generators_are_the_same_on_every_machine() -> None:
    """A golden value: it changes only when every run's noise would, which breaks resuming them."""
    assert torch.rand(2, generator=generator(0, 1, "clip")).tolist() == [0.38539034128189087, 0.7468018531799316]


def test_captions_are_dropped_at_their_rate_and_not_always_the_same() -> None:
    dropped = [[draw(TASK, (1, 1, 2, 2), epoch, f"{i}").drop_caption for i in range(1000)] for epoch in range(2)]
    assert sum(dropped[0]) / 1000 == pytest.approx(0.3, abs=0.05)
    assert dropped[0] != dropped[1]
    everything = batch(list(range(12)), task=replace(TASK, caption_drop=1.0))
    assert all(text.equal(TASK.null_text) for text in everything.condition.texts)


def test_given_frames_are_clean_and_known_as_given() -> None:
    inputs = batch([0, 1, 2], task=replace(TASK, conditioning=ConditioningRates(none=0.0, first=1.0)))
    latents = torch.randn(12, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))[:3]
    assert inputs.noisy_BCTHW[:, :, 0].equal(latents[:, :, 0])
    assert not inputs.noisy_BCTHW[:, :, 1].equal(latents[:, :, 1])
    assert inputs.condition.given_BT.tolist() == [[1, 0, 0]] * 3
    assert (inputs.condition.time_BT[:, 0] == 0).all()
    assert (inputs.condition.time_BT[:, 1:] > 0).all()


def test_sizes_are_in_pixels_and_times_in_seconds() -> None:
    condition = batch([0]).condition
    assert condition.size_B2.tolist() == [[32, 32]]
    torch.testing.assert_close(condition.seconds_BT, torch.tensor([[0.0, 2.5 / 8, 6.5 / 8]]))


def test_losses_are_the_mean_square_of_generated_frames() -> None:
    inputs = batch(list(range(12)))

    def predict(noisy: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(noisy)

    got = losses(predict, inputs)
    for index in range(12):
        kept = [frame for frame in range(3) if inputs.condition.given_BT[index, frame] == 0]
        expected = torch.stack([inputs.target_BCTHW[index, :, frame] for frame in kept]).square().mean()
        torch.testing.assert_close(got[index], expected)


def test_a_perfect_prediction_costs_nothing_whatever_is_said_of_given_frames() -> None:
    inputs = batch(list(range(12)))
    rubbish = torch.full_like(inputs.target_BCTHW, 1e6)
    given = inputs.condition.given_BT[:, None, :, None, None] > 0
    assert losses(lambda noisy, condition: torch.where(given, rubbish, inputs.target_BCTHW), inputs).max() == 0


def test_the_loss_of_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    model = TASK.model.build(3, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    together = losses(model, batch(list(range(12))))
    apart = torch.cat([losses(model, batch([index])) for index in range(12)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
