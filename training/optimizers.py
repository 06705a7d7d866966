"""Optimizers whose updates can be skipped: AdamW, and Muon for the matrices between hidden layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.network import VideoModel, trained_parameters
from training.settings import TrainSettings
from training.weight_patterns import lr_factors

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of gradients and of squared gradients, by PyTorch's names."""
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's iteration a X + b (X X^T) X + c (X X^T)^2 X (Jordan et al. 2024)."""
NEWTON_SCHULZ_STEPS = 5
SCALE = "lr_scale"
"""Key of a group's factor of the learning rate."""


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return parameter groups of the weights that train: for each factor of the learning rate matrices, with weight
    decay, and vectors, without.

    Biases and gains are vectors, and so are the rows of modulation tables.
    """
    factors = lr_factors(model, settings.lr_scale)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for factor in sorted({1.0, *factors.values()}):
        groups |= {(factor, settings.weight_decay): [], (factor, 0.0): []}
    for name, parameter in trained_parameters(model):
        # A weight that ZeRO-3 has sharded keeps its shape only in `ds_shape`.
        n_axes = len(getattr(parameter, "ds_shape", parameter.shape))
        decay = 0.0 if n_axes < 2 or "table" in name else settings.weight_decay
        groups[factors[name], decay].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, SCALE: factor}
        for (factor, decay), parameters in groups.items()
        if parameters
    ]


def set_lr(optimizer: Any, lr: float) -> None:
    """Set the learning rate, times a group's factor, of a PyTorch optimizer or of DeepSpeed's wrapper of one."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        group["lr"] = lr * group.get(SCALE, 1.0)


class SkippableAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, whose `step` changes nothing while `skips_update` returns true.

    DeepSpeed's own optimizer would compile C++ on first use, 163 s on two cores. DeepSpeed computes the gradient's norm
    inside its step, so its caller cannot skip a step by that norm. The optimizer can: it runs after all that DeepSpeed
    does to gradients, and before anything changes.
    """

    skips_update: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        """Optimize the parameters of a model that is on its device already."""
        super().__init__(parameter_groups(model, settings), lr=settings.lr, betas=settings.betas, fused=True)

    def step(self, closure: Any = None) -> Any:
        return None if self.skips_update() else super().step(closure)

    def state_of(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return a tensor's step count and moments, first creating them as the first step would if there are none."""
        state: dict[str, Tensor] = self.state[tensor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
            state.update((name, torch.zeros_like(tensor, requires_grad=False)) for name in MOMENTS)
        return state


class SkippableMuon(SkippableAdamW):
    """Muon (Jordan et al. 2024) for the matrices between hidden layers, AdamW for all other weights.

    These matrices are the `hidden_matrices` of a `VideoModel`, and of other networks all that train with two axes and
    more; the weights of a convolution form a matrix from all inputs of a position to its outputs. Updates are scaled
    to the size of AdamW's (Liu et al. 2025), so one learning rate serves both. Engines and checkpoints see the state of
    AdamW: Muon's momentum is the first moment, and a matrix's second moment stays 0.

    `torch.optim.Muon` computes in bf16, in which a CPU without matrix units for it takes 0.69 s for one matrix
    1024 x 256, and in fp32 0.025 s (torch 2.14, one thread).
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        super().__init__(model, settings)
        self._weight_decay = settings.weight_decay
        trained = [weight for _, weight in trained_parameters(model)]
        weights = model.hidden_matrices() if isinstance(model, VideoModel) else trained
        self._by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in weights:
            if weight.ndim > 1:
                self._by_shape.setdefault(_as_matrix(weight.data).shape, []).append(weight)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if self.skips_update():
            return None
        lr: float = self.param_groups[0]["lr"]
        for shape, weights in self._by_shape.items():
            states = [self.state_of(weight) for weight in weights]
            gradients = [_gradient(weight) for weight in weights]
            momenta = [state["exp_avg"] for state in states]
            torch._foreach_lerp_(momenta, gradients, 1 - MUON_MOMENTUM)
            nesterov = torch._foreach_lerp(gradients, momenta, MUON_MOMENTUM)
            updates_KMN = orthogonalised(torch.stack([_as_matrix(one) for one in nesterov]))
            torch._foreach_mul_(weights, 1 - lr * self._weight_decay)
            for weight, state, update_MN in zip(weights, states, updates_KMN, strict=True):
                weight.add_(update_MN.view_as(weight), alpha=-lr * 0.2 * max(shape) ** 0.5)
                state["step"] += 1
                # AdamW leaves weights without a gradient unchanged.
                weight.grad = None
        with torch.enable_grad():
            return super().step(closure)


OPTIMIZERS = {"adamw": SkippableAdamW, "muon": SkippableMuon}
"""Optimizers by the name of the setting `optimizer`."""


def orthogonalised(x_KMN: Tensor) -> Tensor:
    """Return about the nearest matrix with orthogonal rows or columns for each of K matrices, in their type.

    Five rounds of the Newton-Schulz iteration bring singular values to 0.7 to 1.2. They compute in bf16 on a GPU and in
    fp32 on a CPU.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = x_KMN.shape[-2] > x_KMN.shape[-1]
    x = (x_KMN.mT if is_tall else x_KMN).to(torch.bfloat16 if x_KMN.is_cuda else torch.float32)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    result: Tensor = (x.mT if is_tall else x).to(x_KMN.dtype)
    return result


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _as_matrix(weight: Tensor) -> Tensor:
    """Return a view `[outputs, inputs]` of a weight's memory."""
    return weight.view(len(weight), -1)
