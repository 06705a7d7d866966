"""Muon: its direction, the size of its steps, vectors left to AdamW, and what a checkpoint of it has to hold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.engine import open_engine
from training.models.dit import DiT
from training.optimizers import SkippableMuon
from training.settings import TrainSettings

SETTINGS = TrainSettings(model=DiT(preset="nano"), lr=1e-2, weight_decay=0.0, clip_norm=1e9)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1))


def filled(model: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_a_first_step_moves_a_convolution_by_its_gradients_nearest_orthogonal_matrix() -> None:
    """By the singular value decomposition, which the Newton-Schulz iteration is only near: singular values are 0.7 to 1.2 after five rounds."""
    model = network()
    before = copy.deepcopy(model)
    optimizer = SkippableMuon(model, SETTINGS)
    filled(model)
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    optimizer.step()
    for old, new, gradient in zip(before.parameters(), model.parameters(), gradients, strict=True):
        moved = (old - new).detach()
        if old.ndim == 1:
            assert torch.allclose(moved, 1e-2 * gradient.sign(), atol=1e-6), "AdamW's first step"
            continue
        u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
        scaled = u.T @ moved.flatten(1) @ v.T / (1e-2 * 0.2 * max(gradient.flatten(1).shape) ** 0.5)
        assert ((scaled.diagonal() > 0.6) & (scaled.diagonal() < 1.3)).all()
        # bfloat16 has three digits.
        assert (scaled - scaled.diagonal().diag()).abs().max() < 0.05


def test_a_step_that_is_refused_changes_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = SkippableMuon(model, SETTINGS)
    optimizer.refuses = lambda: True
    filled(model)
    optimizer.step()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_moments_and_count_are_all_there_is_to_go_on_from() -> None:
    """Two steps in one go are two steps with another optimizer for the second, which was given weights, moments and count."""

    def steps(number: int, start: int = 0, given: object = None) -> object:
        engine = open_engine(network(), SETTINGS, torch.device("cpu"), SkippableMuon)
        if given is not None:
            weights, moments, updates = given  # type: ignore[misc]
            for here, value in zip(engine.weight_shards(), weights, strict=True):
                here.copy_(value)
            for name, values in engine.moments().items():
                for here, value in zip(values, moments[name], strict=True):
                    here.copy_(value)
            engine.updates = updates
        for step in range(start, start + number):
            torch.manual_seed(10 + step)
            engine.backward(engine.forward(torch.randn(2, 3, 6, 6)).square().mean(), True)
            engine.step(1e-2)
        copied = {name: [value.clone() for value in values] for name, values in engine.moments().items()}
        return [shard.clone() for shard in engine.weight_shards()], copied, engine.updates

    whole, parts = steps(2), steps(1, 1, steps(1))
    assert whole[2] == parts[2] == 2  # type: ignore[index]
    for one, other in zip(whole[0], parts[0], strict=True):  # type: ignore[index]
        assert one.equal(other)


@pytest.mark.parametrize("lr", [0.0, 1e-3])
def test_the_learning_rate_of_a_step_is_that_steps(lr: float) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    engine = open_engine(model, SETTINGS, torch.device("cpu"), SkippableMuon)
    filled(model)
    engine.step(lr)
    assert all(value.equal(before[name]) == (lr == 0.0) for name, value in model.state_dict().items())
