"""How a model comes into the memory of an engine: the same weights by every way, and with ZeRO-3 never all of them on one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.ranks import run_ranks
from tests.training.models.test_dit import packed
from training.assembly import open_untrained_engine
from training.engine import Engine, open_engine
from training.models.dit import DiT
from training.network import VideoModel
from training.settings import TrainSettings

CPU = torch.device("cpu")
CHANNELS, TEXT_DIM, SEED = 5, 24, 5


def settings_of(**options: Any) -> TrainSettings:
    return TrainSettings(model=DiT(depth=6, dim=64, heads=2), weight_decay=0.5, **options)


def built_whole(settings: TrainSettings) -> VideoModel:
    torch.manual_seed(SEED)
    return settings.model.build(CHANNELS, TEXT_DIM)


def held_bytes(model: nn.Module) -> int:
    """Of a model's weights on this rank: those that are whole, and its parts of those that are spread."""
    tensors = [tensor for weight in model.parameters() for tensor in (weight, getattr(weight, "ds_tensor", None))]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None and not tensor.is_meta)


def trained(engine: Engine) -> dict[str, Any]:
    """The initial weights, and those after three steps, which also differ where other weights decay. Ranks have packs of one shape and of two."""
    initial = engine.full_parameters(on_all_ranks=True)
    latents, condition = packed([(3, 4, 6), (3, 4, 6) if engine.rank == 0 else (1, 8, 8)], [2, 5])
    for _ in range(3):
        predictions = engine.forward(latents, condition)
        loss = torch.stack(
            [(prediction - latent).square().mean() for prediction, latent in zip(predictions, latents, strict=True)]
        ).sum()
        engine.backward(loss, last=True)
        engine.step(1e-2)
    return {"initial": initial, "final": engine.full_parameters(on_all_ranks=True)}


def started(precision: str) -> dict[str, Any]:
    """Under ZeRO-3, from a model in memory and from one without, and the most bytes that a rank held of the second while it was filled."""
    settings = settings_of(workers=2, zero_stage=3, precision=precision)
    whole = trained(open_engine(built_whole(settings), settings, CPU))
    with torch.device("meta"):
        model = settings.model.build(CHANNELS, TEXT_DIM)
    held: list[int] = []
    weight_initialiser = model.weight_initialiser

    def watched() -> Callable[[nn.Parameter, str], None]:
        fill = weight_initialiser()

        def watch(parameter: nn.Parameter, name: str) -> None:
            fill(parameter, name)
            held.append(held_bytes(model) + parameter.untyped_storage().nbytes())

        return watch

    model.weight_initialiser = watched  # type: ignore[method-assign]
    torch.manual_seed(SEED)
    engine = open_engine(model, settings, CPU)
    return {"whole": whole, "spread": trained(engine), "held": max(held)}


def test_the_untrained_model_is_the_one_of_its_seed_and_leaves_random_state_alone() -> None:
    settings = settings_of()
    expected = dict(built_whole(settings).named_parameters())
    before = torch.get_rng_state()
    found = open_untrained_engine(settings, CHANNELS, TEXT_DIM, SEED, CPU).full_parameters()
    assert torch.get_rng_state().equal(before)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(weight) for name, weight in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_zero_3_a_rank_holds_its_part_and_one_weight_and_the_numbers_are_the_same(precision: str) -> None:
    model = built_whole(settings_of())
    bytes_each = {"fp32": 4, "bf16": 2}[precision]
    sizes = [weight.numel() * bytes_each for weight in model.parameters()]
    expected = {
        name: weight.to(torch.bfloat16).float() if precision == "bf16" else weight
        for name, weight in model.named_parameters()
    }
    for found in run_ranks(started, 2, precision):
        for moment in ("initial", "final"):
            one, other = found["whole"][moment], found["spread"][moment]
            assert one.keys() == other.keys() == expected.keys()
            assert all(one[name].equal(other[name]) for name in one), moment
        assert all(found["spread"]["initial"][name].equal(weight) for name, weight in expected.items())
        assert not all(found["spread"]["final"][name].equal(weight) for name, weight in expected.items())
        # Each part is padded by less than an element.
        assert found["held"] <= sum(sizes) / 2 + max(sizes) + bytes_each * len(sizes)
        assert found["held"] < 0.7 * sum(sizes)
