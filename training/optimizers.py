"""Optimizers whose updates can be skipped: AdamW, and Muon for the matrices of convolutional networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.settings import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of gradients and of squared gradients, by PyTorch's names."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices, with weight decay, and vectors, without.

    Biases and gains are vectors, and so are the rows of modulation tables.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        # A weight that ZeRO-3 has sharded keeps its shape only in `ds_shape`.
        n_axes = len(getattr(parameter, "ds_shape", parameter.shape))
        (undecayed if n_axes < 2 or "table" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def set_lr(optimizer: Any, lr: float) -> None:
    """Set the learning rate of every group of a PyTorch optimizer, or of DeepSpeed's wrapper of one."""
    groups: list[Mapping[str, Any]] = optimizer.param_groups
    for group in groups:
        group["lr"] = lr  # type: ignore[index]


class SkippableAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, whose `step` changes nothing while `skips_update` returns true.

    DeepSpeed's own optimizer would compile C++ on first use, 163 s on two cores. DeepSpeed computes the gradient's norm
    inside its step, so its caller cannot skip a step by that norm. The optimizer can: it runs after all that DeepSpeed
    does to gradients, and before anything changes.
    """

    skips_update: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        """Optimize the parameters of a model that is on its device already."""
        super().__init__(
            parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=settings.betas, fused=True
        )

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
    """PyTorch's Muon (Jordan et al. 2024) for weights with two axes and more, AdamW for all others.

    The weights of a convolution form a matrix from all inputs of a position to its outputs. Muon's updates are scaled
    to the size of AdamW's (Liu et al. 2025), so one learning rate serves both. Engines and checkpoints see the state of
    AdamW: Muon's momentum is the first moment, and a matrix's second moment stays 0.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        super().__init__(model, settings)
        self._weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        self._matrices = [nn.Parameter(_as_matrix(weight.data)) for weight in self._weights]
        self._muon = torch.optim.Muon(
            self._matrices, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    def step(self, closure: Any = None) -> Any:
        if self.skips_update():
            return None
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            assert weight.grad is not None
            # AdamW leaves weights without a gradient unchanged.
            matrix.grad, weight.grad = _as_matrix(weight.grad), None
            state = self.state_of(weight)
            state["step"] += 1
            self._muon.state[matrix]["momentum_buffer"] = _as_matrix(state["exp_avg"])
        self._muon.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        self._muon.step()  # type: ignore[no-untyped-call]
        return super().step(closure)


def _as_matrix(weight: Tensor) -> Tensor:
    """Return a view `[outputs, inputs]` of a weight's memory."""
    return weight.view(len(weight), -1)
