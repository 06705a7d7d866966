"""Adapters in a network, against a forward pass and a merge written by hand, and against peft's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.model_packs import random_pack
from training.adapters.dropout import keyed_dropout
from training.adapters.lora import (
    adapted_layers,
    adapter_initialiser,
    adapter_tensors,
    add_adapter,
    check_tensors,
    lora_config,
    merge_adapter,
)
from training.adapters.settings import AdapterSettings
from training.models.dit import DiT
from training.network import VideoModel

SETTINGS = DiT(depth=2, dim=32, heads=2)
CHANNELS, TEXT_DIM = 5, 24
DEFAULT = AdapterSettings(rank=3, alpha=6).resolved(SETTINGS)
DORA = DEFAULT.model_copy(update={"dora": True})
PACK = [(3, 4, 6), (1, 8, 8)], [2, 5]


def base_weights() -> dict[str, Tensor]:
    """Return weights none of which is zero, so that every layer has an effect."""
    rng = torch.Generator().manual_seed(1)
    model = SETTINGS.build(CHANNELS, TEXT_DIM)
    return {name: 0.2 * torch.randn(value.shape, generator=rng) for name, value in model.state_dict().items()}


BASE = base_weights()


def base_model() -> VideoModel:
    model = SETTINGS.build(CHANNELS, TEXT_DIM)
    model.load_state_dict(BASE)
    return model


def adapted(settings: AdapterSettings = DEFAULT) -> VideoModel:
    """Return the model with an untrained adapter, made as training makes it."""
    with torch.device("meta"):
        model = SETTINGS.build(CHANNELS, TEXT_DIM)
    add_adapter(model, settings)
    initialise = adapter_initialiser(model, lambda weight, name: weight.copy_(BASE[name]), seed=3)
    model.to_empty(device="cpu")
    for name, weight in model.named_parameters():
        initialise(weight, name)
    return model


def trained(settings: AdapterSettings = DEFAULT, seed: int = 0) -> VideoModel:
    """Return the model with an adapter whose weights are random."""
    model, rng = adapted(settings), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter_tensors(model).values():
            weight.add_(0.3 * torch.randn(weight.shape, generator=rng))
    return model


def tensors_of(model: VideoModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapter_tensors(model).items()}


def predictions(model: VideoModel) -> Tensor:
    return torch.cat([one.flatten() for one in model(*random_pack(*PACK))])


def by_hand(tensors: dict[str, Tensor], settings: AdapterSettings, weight: float = 1.0) -> VideoModel:
    """Return the model with W + weight alpha / rank B A, and for DoRA with rows of the norms m."""
    assert settings.alpha is not None
    weights = dict(BASE)
    for name in [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]:
        a_RI, b_OR = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        changed = BASE[f"{name}.weight"] + weight * settings.alpha / settings.rank * b_OR @ a_RI
        if settings.dora:
            changed *= (tensors[f"{name}.lora_magnitude_vector"] / changed.norm(dim=1))[:, None]
        weights[f"{name}.weight"] = changed
    model = SETTINGS.build(CHANNELS, TEXT_DIM)
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("settings", [DEFAULT, DORA])
def test_an_untrained_adapter_changes_nothing(settings: AdapterSettings) -> None:
    torch.testing.assert_close(predictions(adapted(settings)), predictions(base_model()))


@pytest.mark.parametrize("settings", [DEFAULT, DORA])
def test_the_forward_pass_is_the_formula(settings: AdapterSettings) -> None:
    model = trained(settings)
    expected = predictions(by_hand(tensors_of(model), settings))
    torch.testing.assert_close(predictions(model), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, predictions(base_model()), atol=1e-2)


def test_dropout_is_that_of_the_input_of_a() -> None:
    """In training alone; what is kept is divided by its share."""
    model = trained(DEFAULT.model_copy(update={"dropout": 0.25}))
    layer, x_SD = next(iter(adapted_layers(model).values())), torch.randn(50, 32)
    a_RI, b_OR = (getattr(layer, part)["default"].weight for part in ("lora_A", "lora_B"))
    settings = AdapterSettings(dropout=0.25)
    with keyed_dropout(settings, torch.device("cpu"), 1, 2, 3):
        found = layer(x_SD)
    with keyed_dropout(settings, torch.device("cpu"), 1, 2, 3):
        kept_SD = torch.nn.functional.dropout(x_SD, 0.25)
    base: Any = layer.base_layer
    torch.testing.assert_close(found, base(x_SD) + 2 * kept_SD @ a_RI.T @ b_OR.T, atol=1e-5, rtol=1e-5)
    assert 0.2 < float((kept_SD == 0).float().mean()) < 0.3
    with torch.no_grad():
        torch.testing.assert_close(layer(x_SD), base(x_SD) + 2 * x_SD @ a_RI.T @ b_OR.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [DEFAULT, DORA])
def test_merged_weights_are_the_formula(settings: AdapterSettings) -> None:
    tensors, model = tensors_of(trained(settings)), base_model()
    merge_adapter(model, settings, tensors, 0.5)
    expected = by_hand(tensors, settings, 0.5).state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


def test_several_adapters_add_up() -> None:
    first, second = tensors_of(trained(seed=1)), tensors_of(trained(seed=2))
    model = base_model()
    merge_adapter(model, DEFAULT, first, 0.5)
    merge_adapter(model, DEFAULT, second, -2.0)
    one, other = by_hand(first, DEFAULT, 0.5).state_dict(), by_hand(second, DEFAULT, -2.0).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, one[name] + other[name] - BASE[name], atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_adapter_alone() -> None:
    """Self-attention multiplies by the weights of two layers at once, which an adapter beside them must not escape."""
    model = trained()
    predictions(model).square().sum().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters() if weight.grad is not None)
    assert len(adapted_layers(model)) == 2 * 8
    assert {id(weight) for weight in model.hidden_matrices()} == {
        id(weight) for weight in adapter_tensors(model).values()
    }


@pytest.mark.parametrize("layer", ["query", "key_value", "out"])
@pytest.mark.parametrize("attention", ["attention", "text_attention"])
def test_each_layer_of_attention_has_an_effect(attention: str, layer: str) -> None:
    model = trained(DEFAULT.model_copy(update={"targets": (f"{attention}.{layer}",)}))
    assert len(adapted_layers(model)) == 2
    assert not torch.allclose(predictions(model), predictions(base_model()), atol=1e-3)


def test_gradients_are_those_of_the_formula() -> None:
    model = trained()
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors_of(model).items()}
    hand = SETTINGS.build(CHANNELS, TEXT_DIM)
    weights = dict(BASE)
    for name in [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]:
        weights[f"{name}.weight"] = BASE[f"{name}.weight"] + 2 * (
            tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        )
    outputs = torch.func.functional_call(hand, weights, random_pack(*PACK))
    torch.cat([one.flatten() for one in outputs]).square().mean().backward()
    predictions(model).square().mean().backward()
    for name, parameter in adapter_tensors(model).items():
        torch.testing.assert_close(parameter.grad, tensors[name].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("settings", [DEFAULT, DORA])
def test_names_in_files_are_those_of_peft(settings: AdapterSettings, tmp_path: Path) -> None:
    model = trained(settings)
    theirs = peft.get_peft_model_state_dict(model)
    assert theirs.keys() == tensors_of(model).keys()
    peft.get_peft_model(base_model(), lora_config(settings)).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {f"base_model.model.{name}" for name in theirs} == saved.keys()


def test_targets_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"adapter.targets: .*'querry'.*query"):
        add_adapter(base_model(), DEFAULT.model_copy(update={"targets": ("query", "querry")}))


def test_wrong_keys_are_named() -> None:
    tensors = tensors_of(trained())
    expected = {name: tensor.shape for name, tensor in tensors.items()}
    check_tensors(expected, tensors)
    for prefix in ("diffusion_model.", "base_model.model."):
        with pytest.raises(ValueError, match=f"its keys begin with {prefix}"):
            check_tensors(expected, {f"{prefix}{name}": tensor for name, tensor in tensors.items()})
        with pytest.raises(ValueError, match=f"its keys lack {prefix}"):
            check_tensors({f"{prefix}{name}": shape for name, shape in expected.items()}, tensors)
    name, tensor = next(iter(tensors.items()))
    with pytest.raises(ValueError, match=f"it lacks the keys {name}"):
        check_tensors(expected, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ValueError, match=r"no layer for its keys blocks\.9"):
        check_tensors(expected, tensors | {"blocks.9.attention.query.lora_A.weight": tensor})
    with pytest.raises(ValueError, match=f"{name} is .* there, and .* in this model"):
        check_tensors(expected, tensors | {name: tensor[:, :-1]})
