"""The parts of the loss against their definitions in numpy, and the divergence against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.autoencoder_clips import random_pair
from training.autoencoder_training.losses import kl_divergence, reconstruction_loss
from training.autoencoder_training.settings import LossSettings


def test_parts_of_the_loss_are_those_of_their_definitions() -> None:
    made, video = random_pair(1)
    error = (made - video).double().numpy()
    expected = {
        "l1": np.abs(error).mean((1, 2, 3, 4)),
        "gradient": sum(np.abs(np.diff(error, axis=axis)).mean((1, 2, 3, 4)) for axis in (2, 3, 4)),
        "frequency": np.abs(np.fft.rfft2(error, norm="ortho")).mean((1, 2, 3, 4)),
    }
    for name, value in expected.items():
        only = LossSettings(**{"l1": 0.0, "gradient": 0.0, "frequency": 0.0, name: 2.0})
        assert reconstruction_loss(only, made, video).tolist() == pytest.approx((2 * value).tolist(), rel=1e-4)


def test_the_divergence_is_that_of_torch() -> None:
    posterior = torch.distributions.Normal(torch.full((1, 16, 1, 2, 2), 0.7), 0.3)
    exact = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    assert float(kl_divergence(posterior.mean, 2 * posterior.stddev.log())) == pytest.approx(float(exact), rel=1e-5)
