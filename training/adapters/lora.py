"""Adapters in a network, through peft: adding one to train, and merging trained ones into the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cluster.config import list_names, unknown_message
from training.adapters.dropout import TrainingDropout
from training.adapters.low_rank import LowRank, read_lora
from training.adapters.quantised import CODES, SCALES, QuantisedLinear, check_quantisable, quantised
from training.adapters.settings import AdapterSettings
from training.network import InitialiseWeight, VideoModel
from training.rng import generator
from training.weight_names import prefix_fault

ADAPTER = "default"
"""Name of the adapter in the model; peft has it in the names of weights, and leaves it out in files."""
BASE_LAYER, A, B, MAGNITUDE = "base_layer", "lora_A", "lora_B", "lora_magnitude_vector"
"""Parts of the names of an adapted layer's weights: those of the layer itself, A, B, and the norms of DoRA."""
MAX_NAMED = 4
"""Most keys that a message names."""


def peft_module() -> ModuleType:
    """Return the module `peft`. Raises `ValueError` with the fix if it is not installed."""
    try:
        import peft  # of the extra `models`, and imports transformers, which takes seconds
    except ImportError as error:
        raise ValueError("adapters need the package peft: pip install 'worldloom[models]'") from error
    module: ModuleType = peft
    return module


def lora_config(settings: AdapterSettings, base: str | None = None) -> Any:
    """Return resolved settings as a `LoraConfig` of peft."""
    assert settings.targets is not None
    return peft_module().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        base_model_name_or_path=base,
    )


def add_adapter(model: VideoModel, settings: AdapterSettings) -> None:
    """Freeze a model's weights and add an adapter with resolved settings to it, in place.

    Raises `ValueError` for a target that no linear layer has.
    """
    check_targets(model, settings.targets or ())
    model.requires_grad_(False)
    peft_module().inject_adapter_in_model(lora_config(settings), model, ADAPTER, low_cpu_mem_usage=True)
    model.draws_random_numbers = settings.dropout > 0
    for name, layer in adapted_layers(model).items():
        # ZeRO-3 gathers all weights of the layer at once; DoRA reads some outside the modules that hold them.
        layer._z3_leaf = True  # type: ignore[assignment]
        if settings.dropout:
            layer.get_submodule("lora_dropout").add_module(ADAPTER, TrainingDropout(settings.dropout))
        if settings.base_bits:
            linear = layer.get_submodule(BASE_LAYER)
            assert isinstance(linear, nn.Linear), "check_targets refuses others"
            check_quantisable(name, linear, settings.base_bits)
            layer.add_module(BASE_LAYER, QuantisedLinear(linear, settings.base_bits))


def check_targets(model: nn.Module, targets: Iterable[str]) -> None:
    """Raise `ValueError` for a target that is not the last part of the name of a linear layer."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(_ends_with(name, target) for name in names):
            endings = sorted({ending for name in names for ending in _endings(name)})
            raise ValueError(f"adapter.targets: {unknown_message('linear layer', target, endings)}")


def _endings(name: str) -> tuple[str, ...]:
    """Return the last part of a layer's name that names a kind of layer, with the part before a number."""
    parts = name.split(".")
    return (".".join(parts[-2:]),) if parts[-1].isdigit() else (parts[-1],)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the adapted layers of a model by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_initialiser(
    model: VideoModel, read_base: InitialiseWeight, seed: int, start: Mapping[str, LowRank] | None = None
) -> InitialiseWeight:
    """Return a function that fills the weights of a model with an adapter, given each weight and its name.

    `read_base` fills those of the base, by their names in it. A and B are those of `start`, see `starting_layers`. Else
    A is drawn as peft does, from its name and the seed, so that it is the same on every rank; B is 0, and the norms of
    DoRA are those of the base: nothing is changed yet.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    in_few_bits = {
        f"{name}.{part}": module
        for name, module in model.named_modules()
        if isinstance(module, QuantisedLinear)
        for part in (CODES, SCALES)
    }

    @torch.no_grad()
    def initialise(parameter: nn.Parameter, name: str) -> None:
        layer, _, part = name.partition(".lora_")
        if part and start:
            parameter.copy_(start[layer].a_RI if f".{A}." in name else start[layer].b_OR)
        elif own := in_few_bits.get(name):
            values = torch.empty(own.out_features, own.in_features, device="cpu")
            read_base(nn.Parameter(values), base_name(f"{name.rpartition('.')[0]}.weight"))
            codes, scales = quantised(values.to(parameter.device), own.bits)
            parameter.copy_(codes if name.endswith(f".{CODES}") else scales)
        elif f".{A}." in name:
            values = torch.empty(parameter.shape, device="cpu")
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator(seed, "adapter", name))
            parameter.copy_(values)
        elif f".{B}." in name:
            parameter.zero_()
        elif f".{MAGNITUDE}." in name:
            weight = f"{name.partition(f'.{MAGNITUDE}.')[0]}.{BASE_LAYER}.weight"
            values = nn.Parameter(torch.empty(shapes[weight], device="cpu"))
            read_base(values, base_name(weight))
            parameter.copy_(torch.linalg.norm(values, dim=1))
        else:
            read_base(parameter, base_name(name))

    return initialise


def starting_layers(settings: AdapterSettings, model: VideoModel) -> dict[str, LowRank]:
    """Return the LoRA that an adapter with resolved settings starts from, by layer and in the scale of the settings;
    none if they name none.

    `model` is without an adapter. Raises `ValueError` with the fix for a LoRA of other layers or of another rank.
    """
    if settings.init is None:
        return {}
    try:
        changes = read_lora(settings.init).changes(model)
    except ValueError as error:
        raise ValueError(f"adapter.init: {error}") from error
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    own = {name for name in linear if any(_ends_with(name, target) for target in settings.targets or ())}
    if differing := sorted((own ^ changes.layers.keys()) | changes.differences.keys()):
        raise ValueError(
            f"{settings.init}: this adapter and the LoRA that it starts from change other layers, of which some are "
            f"{list_names(differing, MAX_NAMED)}; set adapter.targets to the layers of that file"
        )
    for name, one in changes.layers.items():
        if len(one.a_RI) != settings.rank:
            raise ValueError(
                f"{settings.init}: {name} has rank {len(one.a_RI)} there; set adapter.rank: {len(one.a_RI)}"
            )
    scale = (settings.alpha or settings.rank) / settings.rank
    return {name: LowRank(one.a_RI, one.b_OR * (one.scale / scale), scale) for name, one in changes.layers.items()}


def _ends_with(name: str, target: str) -> bool:
    """Return whether a target is a layer's name or the last part of it."""
    return name == target or name.endswith(f".{target}")


def base_name(name: str) -> str:
    """Return the name that a weight of an adapted model has in the model without adapter."""
    return name.replace(f".{BASE_LAYER}.", ".")


def file_name(name: str) -> str:
    """Return the name in files of an adapter's weight, as peft and diffusers have it."""
    return name.replace(f".{ADAPTER}.weight", "") if f".{MAGNITUDE}." in name else name.replace(f".{ADAPTER}.", ".")


@torch.no_grad()
def merge_adapter(model: VideoModel, settings: AdapterSettings, tensors: Mapping[str, Tensor], weight: float) -> None:
    """Add `weight` times the change of a trained adapter to a model's weights, in place.

    `tensors` have the names of files; see `file_name`. Raises `ValueError` if they are not those of an adapter with
    these settings of this model.
    """
    from peft.tuners.lora import LoraLayer

    peft = peft_module()
    check_targets(model, settings.targets or ())
    tuner = peft.LoraModel(model, lora_config(settings), ADAPTER)
    check_tensors({name: tensor.shape for name, tensor in adapter_tensors(model).items()}, tensors)
    peft.set_peft_model_state_dict(model, dict(tensors), ADAPTER)
    for module in tuner.modules():
        if isinstance(module, LoraLayer):
            module.set_scale(ADAPTER, weight)
    tuner.merge_and_unload()


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the adapter of a model, by their names in files."""
    parts = (f".{A}.", f".{B}.", f".{MAGNITUDE}.")
    return {
        file_name(name): parameter
        for name, parameter in model.named_parameters()
        if any(part in name for part in parts)
    }


def check_tensors(expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` if an adapter's tensors have not the names and shapes that it has in the model.

    `expected` are the shapes by name. A prefix that all names have in excess, or lack, is named.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if message := prefix_fault(expected, found):
        raise ValueError(message)
    if unknown:
        raise ValueError(
            f"this model has no layer for its keys {list_names(unknown, MAX_NAMED)}; take the model it was trained for"
        )
    if missing:
        raise ValueError(f"it lacks the keys {list_names(missing, MAX_NAMED)}; take the file as it was written")
    for name, shape in expected.items():
        if tuple(found[name].shape) != tuple(shape):
            raise ValueError(
                f"{name} is {list(found[name].shape)} there, and {list(shape)} in this model; "
                "take the model it was trained for"
            )
