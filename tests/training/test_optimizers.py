"""Optimizers: decay groups; Muon's direction and step size, vectors by AdamW, skipped updates, and resumable state."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.support.step_samples import CPU
from training.engine import open_engine
from training.models.dit import DiT
from training.optimizers import SkippableMuon, parameter_groups
from training.settings import TrainSettings

SETTINGS = TrainSettings(model=DiT(preset="nano"), optimizer="muon", lr=1e-2, weight_decay=0.0, clip_norm=1e9)


def network() -> nn.Module:
    """Return a small convolutional network, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1))


def fill_gradients(model: nn.Module) -> None:
    """Set random gradients, always the same."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_only_matrices_decay() -> None:
    model = DiT(depth=1, dim=32, heads=2).build(4, 8)
    decayed, undecayed = parameter_groups(model, SETTINGS.model_copy(update={"weight_decay": 0.1}))
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0.0
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert any(parameter is model.get_parameter("blocks.0.table_MD") for parameter in undecayed["params"])
    assert len(decayed["params"]) + len(undecayed["params"]) == len(list(model.parameters()))


def test_muon_moves_along_the_nearest_orthogonal_matrix() -> None:
    """The first step of a convolution, against the singular value decomposition of its gradient.

    The Newton-Schulz iteration only approximates it: singular values are 0.7 to 1.2 after five rounds.
    """
    model = network()
    before = copy.deepcopy(model)
    optimizer = SkippableMuon(model, SETTINGS)
    fill_gradients(model)
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
        assert (scaled - scaled.diagonal().diag()).abs().max() < 1e-3


def test_updates_are_those_of_torch_muon() -> None:
    """PyTorch's own optimizer computes in bf16, which has three digits."""
    ours, theirs = nn.Linear(12, 5, bias=False), nn.Linear(12, 5, bias=False)
    theirs.load_state_dict(ours.state_dict())
    decay = 0.1
    optimizer = SkippableMuon(ours, SETTINGS.model_copy(update={"weight_decay": decay}))
    reference = torch.optim.Muon(theirs.parameters(), lr=1e-2, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for model in (ours, theirs):
            torch.manual_seed(step)
            model.weight.grad = torch.randn(5, 12)
        optimizer.step()
        reference.step()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.weight, theirs.weight, atol=2e-3, rtol=0)


def test_muon_takes_the_matrices_of_blocks() -> None:
    model = DiT(depth=2, dim=32, heads=2).build(4, 8)
    names = {id(weight): name for name, weight in model.named_parameters()}
    hidden = sorted(names[id(weight)] for weight in model.hidden_matrices())
    assert len(hidden) == 2 * 8
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in hidden)


def test_a_skipped_step_changes_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = SkippableMuon(model, SETTINGS)
    optimizer.skips_update = lambda: True
    fill_gradients(model)
    optimizer.step()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.parameters())


class State(NamedTuple):
    """The state of an engine that a checkpoint holds."""

    weights: list[Tensor]
    moments: dict[str, list[Tensor]]
    updates: int


def take_steps(number: int, start: int = 0, state: State | None = None) -> State:
    """Take steps with a new engine, from this state if there is one, and return the state after them."""
    engine = open_engine(network(), SETTINGS, CPU)
    if state is not None:
        for here, value in zip(engine.weight_shards(), state.weights, strict=True):
            here.copy_(value)
        for name, values in engine.moments().items():
            for here, value in zip(values, state.moments[name], strict=True):
                here.copy_(value)
        engine.updates = state.updates
    for step in range(start, start + number):
        torch.manual_seed(10 + step)
        engine.backward(engine.forward(torch.randn(2, 3, 6, 6)).square().mean(), True)
        engine.step(1e-2)
    moments = {name: [value.clone() for value in values] for name, values in engine.moments().items()}
    return State([shard.clone() for shard in engine.weight_shards()], moments, engine.updates)


def test_weights_moments_and_count_are_the_whole_state() -> None:
    """Two steps of one optimizer equal one step, and another by a new optimizer with the first one's state."""
    whole, resumed = take_steps(2), take_steps(1, 1, take_steps(1))
    assert whole.updates == resumed.updates == 2
    assert all(one.equal(other) for one, other in zip(whole.weights, resumed.weights, strict=True))


@pytest.mark.parametrize("lr", [0.0, 1e-3])
def test_muon_takes_each_steps_learning_rate(lr: float) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    engine = open_engine(model, SETTINGS, CPU)
    fill_gradients(model)
    engine.step(lr)
    assert all(value.equal(before[name]) == (lr == 0.0) for name, value in model.state_dict().items())
