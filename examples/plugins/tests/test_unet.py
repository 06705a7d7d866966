"""The model `unet` on random latents."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from example_plugins.unet import UNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.network import Condition, VideoModel

CHANNELS, TEXT_DIM = 4, 12
SHAPES = [(1, 6, 10), (5, 6, 10), (3, 7, 5), (1, 3, 3)]
"""Latent frames, rows and columns of the samples of a pack."""


def build(seed: int = 0) -> VideoModel:
    """Return a network as training builds it: without memory first, then with initial weights."""
    with torch.device("meta"):
        network = UNet(width=16).build(CHANNELS, TEXT_DIM)
    network.to_empty(device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.initialise()
    return network


def build_random() -> VideoModel:
    """Return a network in which no weight is 0, so that every input affects the output."""
    network = build()
    rng = torch.Generator().manual_seed(2)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1, generator=rng)
    return network


def make_pack(shapes: Sequence[tuple[int, int, int]]) -> tuple[list[Tensor], Condition]:
    """Return random latents of these shapes, with captions of different lengths."""
    rng = torch.Generator().manual_seed(1)
    count, frames = len(shapes), [shape[0] for shape in shapes]
    condition = Condition(
        texts=[torch.randn(3 + i, TEXT_DIM, generator=rng) for i in range(count)],
        times=[torch.rand(n, generator=rng) for n in frames],
        conditioning_masks=[torch.zeros(n) for n in frames],
        seconds=[torch.arange(n) / 2 for n in frames],
        fps_B=torch.full((count,), 8.0),
        size_B2=torch.full((count, 2), 64.0),
        crop_B2=torch.zeros(count, 2),
        source_B2=torch.full((count, 2), 64.0),
    )
    return [torch.randn(CHANNELS, *shape, generator=rng) for shape in shapes], condition


def select(condition: Condition, samples: Sequence[int]) -> Condition:
    """Return the condition of some samples, in this order."""
    per_sample = ("texts", "times", "conditioning_masks", "seconds")
    lists = {name: [getattr(condition, name)[i] for i in samples] for name in per_sample}
    tensors = {name: getattr(condition, name)[list(samples)] for name in ("fps_B", "size_B2", "crop_B2", "source_B2")}
    return Condition(**lists, **tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_have_the_shapes_of_latents(dtype: torch.dtype) -> None:
    latents, condition = make_pack(SHAPES)
    predictions = build_random().to(dtype)(latents, condition)
    assert [prediction.shape for prediction in predictions] == [latent.shape for latent in latents]
    assert all(prediction.dtype == torch.float32 and prediction.isfinite().all() for prediction in predictions)


@pytest.mark.parametrize("samples", [[2, 0, 3, 1], [0], [1], [2], [3]])
def test_samples_do_not_depend_on_their_pack(samples: list[int]) -> None:
    network = build_random()
    latents, condition = make_pack(SHAPES)
    with torch.no_grad():
        expected = network(latents, condition)
        predictions = network([latents[i] for i in samples], select(condition, samples))
    for i, prediction in zip(samples, predictions, strict=True):
        torch.testing.assert_close(prediction, expected[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["times", "conditioning_masks", "seconds", "texts"])
def test_predictions_depend_on_each_condition(name: str) -> None:
    network = build_random()
    latents, condition = make_pack([(3, 4, 4)])
    with torch.no_grad():
        (before,) = network(latents, condition)
        getattr(condition, name)[0].add_(0.3)
        (after,) = network(latents, condition)
    assert (after - before).abs().max() > 1e-4


def test_each_layer_is_called_once_per_pack() -> None:
    network, calls = build(), list[str]()
    layers = [name for name, module in network.named_modules() if module._parameters]
    for name in layers:
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    network(*make_pack(SHAPES))
    assert sorted(calls) == sorted(layers)


def test_initial_weights_follow_from_the_seed() -> None:
    one, same, other = (list(build(seed).parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_flops_are_about_those_that_torch_counts() -> None:
    settings = UNet(width=32)
    latents, condition = make_pack([(5, 16, 16)])
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.random.fork_rng():
        settings.build(CHANNELS, TEXT_DIM)(latents, condition)
    assert settings.tokens(5, 16, 16) == 320
    assert settings.tokens(1, 3, 5) == 6
    assert settings.flops(320, text_tokens=3) == pytest.approx(counter.get_total_flops(), rel=0.2)


@pytest.mark.slow
def test_loss_falls_when_one_batch_is_repeated() -> None:
    network = build()
    latents, condition = make_pack([(3, 6, 6), (3, 6, 6), (1, 6, 6)])
    rng = torch.Generator().manual_seed(5)
    noises = [torch.randn(latent.shape, generator=rng) for latent in latents]
    levels = [time_T[None, :, None, None] for time_T in condition.times]
    noisy = [(1 - t) * latent + t * noise for latent, noise, t in zip(latents, noises, levels, strict=True)]
    velocities = [noise - latent for latent, noise in zip(latents, noises, strict=True)]
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        predictions = network(noisy, condition)
        loss = torch.stack([(p - v).square().mean() for p, v in zip(predictions, velocities, strict=True)]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.5 * losses[0]
