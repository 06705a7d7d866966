"""The optimizer of convolutional networks: Muon for matrices, AdamW for vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.engine import GuardedAdamW
from training.settings import TrainSettings


class GuardedMuon(GuardedAdamW):
    """PyTorch's Muon (Jordan et al. 2024) for weights of two axes and more, AdamW for the others; updates nothing while `refuses` says so.

    A convolution's weights count as the matrix from all it looks at to what it makes. Muon's steps are as large as AdamW's would be (Liu et al.
    2025), so one learning rate serves both. To engines and checkpoints this looks like AdamW: Muon's momentum is the first moment, and
    the second one of a matrix stays 0.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        super().__init__(model, settings)
        self._weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        self._matrices = [nn.Parameter(_matrix(weight.data)) for weight in self._weights]
        self._muon = torch.optim.Muon(
            self._matrices, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    def step(self, closure: Any = None) -> Any:
        if self.refuses():
            return None
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            assert weight.grad is not None
            # AdamW leaves alone what has no gradient.
            matrix.grad, weight.grad = _matrix(weight.grad), None
            state = self.state_of(weight)
            state["step"] += 1
            self._muon.state[matrix]["momentum_buffer"] = _matrix(state["exp_avg"])
        self._muon.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        self._muon.step()  # type: ignore[no-untyped-call]
        return super().step(closure)


def _matrix(weight: Tensor) -> Tensor:
    """The same memory as `[made, looked at]`."""
    return weight.view(len(weight), -1)
