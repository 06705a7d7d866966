"""Predictions of a model in sampling: in which precision, and for how many conditions in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.telemetry import log
from training.condition import SampleCondition, stack_conditions
from training.network import VideoModel

# Shape suffixes: C latent channels, T H W latent frames, rows and columns.


def model_dtype(device: torch.device) -> torch.dtype:
    """Return the type of a model's weights in sampling: bfloat16 on a GPU that computes in it, float32 elsewhere.

    Models compute as in training with `precision: bf16`: rope, the statistics of norms and the prediction itself are
    fp32 with bfloat16 weights too. Latents, guidance and solver are always fp32.
    """
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


class Predictor:
    """A way to predict for the same latents under several conditions: in one forward pass, or in one for each.

    The first pass finds out whether memory is large enough for all of them. Both ways give the same velocities up to
    rounding, and one pass is faster.
    """

    def __init__(self, time_factor: int) -> None:
        """`time_factor` is the number of frames per latent frame of the autoencoder."""
        self._time_factor, self._together = time_factor, True

    def predict(self, model: VideoModel, x_CTHW: Tensor, conditions: Sequence[SampleCondition]) -> list[Tensor]:
        """Return the model's prediction `[C, T, H, W]` for each condition."""
        if self._together:
            try:
                together: list[Tensor] = model(
                    [x_CTHW] * len(conditions), stack_conditions(conditions, self._time_factor)
                )
                return together
            except torch.OutOfMemoryError:
                if len(conditions) == 1:
                    raise
            # Not in the handler, whose traceback would keep the activations alive.
            torch.cuda.empty_cache()
            self._together = False
            log.info("predictions with and without the prompt do not fit into memory together: they are made in turn")
        return [model([x_CTHW], stack_conditions([each], self._time_factor))[0] for each in conditions]
