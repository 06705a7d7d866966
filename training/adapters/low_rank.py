"""LoRA in files of other programs: which layers of a model their keys name, and how they change it.

Keys are the name of a layer, with or without a prefix, and the part of the adapter. Layers have the names of diffusers
or those of the model's authors, which ComfyUI and most trainers write.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from cluster import storage
from cluster.config import list_names
from training.adapters.settings import ADAPTER_CONFIG
from training.models._published_network import PublishedTransformer
from training.network import VideoModel, parameter_shapes
from training.weight_names import prefix_fault

# Shape suffixes: O outputs, I inputs, R rank.

PREFIXES = ("diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.", "")
"""Prefixes of layers' names, of ComfyUI, diffusers and peft."""
UNDERSCORED = "lora_unet_"
"""Prefix of layers' names with underscores in place of dots, of kohya's trainers."""
ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_down.weight": "A",
    ".lora_B.weight": "B",
    ".lora_up.weight": "B",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
}
"""Parts of an adapter by the ends of keys; the last two are added to a layer's own weights."""
METADATA = "lora_adapter_metadata"
"""Key of an adapter's settings in the header of safetensors files, by diffusers."""
MAX_NAMED = 4
"""Most keys that a message names."""
FIRST, SECOND = "transformer", "transformer_2"
"""Folders of two experts in a pipeline, and the prefixes of their keys in a file for both."""


@dataclass(frozen=True)
class LowRank:
    """The change scale B A of a layer's weight `[O, I]`."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float


@dataclass(frozen=True)
class Changes:
    """The change of a model by an adapter."""

    layers: Mapping[str, LowRank]
    """Low-rank changes, by the name of the layer in the model."""
    differences: Mapping[str, Tensor]
    """Tensors that are added to other weights, by their names in the model."""


@dataclass(frozen=True, eq=False)
class LoraFile:
    """The content of a safetensors file of a LoRA, which is read once."""

    uri: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    """Settings of peft in its header or beside it, as they are named there; empty if there are none."""
    identity: str
    """Digest of the file."""

    @property
    def subfolders(self) -> frozenset[str]:
        """The experts that a file has keys for, if it names the second one; empty if it does not say which."""
        named = {key.partition(".")[0] for key in self.tensors} & {FIRST, SECOND}
        return frozenset(named) if SECOND in named else frozenset()

    def changes(self, model: VideoModel) -> Changes:
        """Return the change of a model; of an expert that of its own keys, if the file has keys of both.

        Scales are those of the keys, or else of the settings of peft. Raises `ValueError` with the fix for keys that
        name no layer of the model, for those of another kind of adapter, and for other shapes.
        """
        try:
            prefix = self._prefix(model)
            own = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
            # Settings beside a file have no prefix.
            named = [key for key in self.settings if key.startswith(prefix) or "." not in key]
            config = {key.rpartition(".")[2]: self.settings[key] for key in named}
            if config:
                check_config(config)
            return _changes(own, config, model)
        except ValueError as error:
            raise ValueError(f"{self.uri}: {error}") from error

    def _prefix(self, model: VideoModel) -> str:
        """Return the prefix of the keys for a model in a file for two experts; empty for another file."""
        if not self.subfolders:
            return ""
        published = model.published if isinstance(model, PublishedTransformer) else None
        if published is None or published.boundary is None:
            raise ValueError(
                f"it has keys of {SECOND}, the second of two experts, and this model is one transformer; take the "
                "model it is for"
            )
        if published.subfolder not in self.subfolders:
            raise ValueError(f"it has no keys of {published.subfolder}; take the expert it is for")
        if other := sorted(key for key in self.tensors if key.partition(".")[0] not in self.subfolders):
            raise ValueError(
                f"its keys {list_names(other, MAX_NAMED)} begin with neither {FIRST}. nor {SECOND}.; take the file as "
                "it was written"
            )
        return f"{published.subfolder}."


def read_lora(uri: str) -> LoraFile:
    """Return the content of a safetensors file of a LoRA.

    Raises `ValueError` with the fix if there is no such file, if it is damaged, and as `check_values`.
    """
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read: {error}; give the safetensors file of a LoRA") from error
    try:
        tensors = load_tensors(data)
    except Exception as error:  # safetensors has an exception of its own, which is no public name
        raise ValueError(f"{uri}: is no whole safetensors file: {error}; download it again") from error
    try:
        check_values(tensors)
        return LoraFile(uri, tensors, _settings(uri, data), storage.digest(data))
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from error


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` naming a tensor of an adapter that is empty, as of rank 0, or not finite."""
    for key, tensor in sorted(tensors.items()):
        if tensor.numel() == 0:
            raise ValueError(f"{key} is {list(tensor.shape)}, and changes nothing; take a LoRA of rank 1 or more")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{key} has values that are not finite; take an earlier step of its training")


@torch.no_grad()
def merge_changes(model: VideoModel, changes: Changes, weight: float) -> None:
    """Add `weight` times the change of an adapter to a model's weights, in place."""
    for layer, one in changes.layers.items():
        own = model.get_parameter(f"{layer}.weight")
        own.add_((weight * one.scale * one.b_OR.float() @ one.a_RI.float()).to(own))
    for name, difference in changes.differences.items():
        own = model.get_parameter(name)
        own.add_((weight * difference.float()).to(own))


def check_config(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` for settings of peft that are not those of a LoRA, or by which layers differ in alpha."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise ValueError(f"peft_type {kind} is no LoRA; merge the adapter into its model by peft")
    if config.get("alpha_pattern"):
        raise ValueError("alpha_pattern is not read; merge the adapter into its model by peft")
    for key in ("r", "lora_alpha"):
        if not isinstance(value := config.get(key), int | float) or value <= 0:
            raise ValueError(f"{key} is {value!r}, and must be a number above 0; take the file as it was written")


def _settings(uri: str, data: bytes) -> dict[str, Any]:
    """Return the settings of peft in the header of a file, where diffusers writes them with the prefixes of keys, or
    beside it; empty if there are none.
    """
    length = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(METADATA)
    beside = storage.join(uri.rpartition("/")[0], ADAPTER_CONFIG)
    if text is None and not storage.exists(beside):
        return {}
    try:
        return dict(storage.read_json(beside) if text is None else json.loads(text))
    except ValueError as error:
        raise ValueError(f"{METADATA if text else beside} is damaged: {error}; download it again") from error


def _scale(config: Mapping[str, Any], rank: int) -> float:
    """Return the scale of a layer by settings of peft: 1 without any."""
    if not config:
        return 1.0
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _changes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], model: VideoModel) -> Changes:
    parts: dict[str, dict[str, Tensor]] = {}
    other: list[str] = []
    for key, tensor in tensors.items():
        key = key.replace(".default.weight", ".weight")
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        if ending is None:
            other.append(key)
        else:
            parts.setdefault(key.removesuffix(ending), {})[ENDINGS[ending]] = tensor
    if other or not parts:
        raise ValueError(
            f"its keys {list_names(sorted(other), MAX_NAMED) or 'are missing'} are not those of a LoRA; give a LoRA, "
            "and merge an adapter of another kind into its model"
        )
    shapes = parameter_shapes(model)
    layers = _layers(list(parts), model)
    low_rank: dict[str, LowRank] = {}
    differences: dict[str, Tensor] = {}
    for key, found in parts.items():
        layer = layers[key]
        for part in ("weight", "bias"):
            if part in found:
                differences[f"{layer}.{part}"] = found[part]
                _check_shape(f"{layer}.{part}", tuple(found[part].shape), shapes)
        if "A" in found and "B" in found:
            a_RI, b_OR = found["A"], found["B"]
            own = float(found["alpha"]) / len(a_RI) if "alpha" in found else _scale(config, len(a_RI))
            low_rank[layer] = LowRank(a_RI, b_OR, own)
            product = (b_OR.shape[0], a_RI.shape[1]) if b_OR.shape[1:] == a_RI.shape[:1] else ()
            _check_shape(f"{layer}.weight", product if a_RI.ndim == b_OR.ndim == 2 else (), shapes)
        elif "A" in found or "B" in found:
            raise ValueError(f"{key} has one of the two matrices of a LoRA; download the file again")
        elif set(found) == {"alpha"}:
            raise ValueError(f"{key} has an alpha and no matrices; download the file again")
    return Changes(low_rank, differences)


def _check_shape(name: str, found: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if shapes.get(name) != found:
        raise ValueError(
            f"it changes {name} by a matrix of {list(found)}, and that is {list(shapes.get(name, ()))} in this model; "
            "take the model it was trained for"
        )


def _layers(keys: list[str], model: VideoModel) -> dict[str, str]:
    """Return the layer of the model that each key names. Raises `ValueError` for keys that name none."""
    spelled = _spellings(model)
    underscored = {name.replace(".", "_"): layer for name, layer in spelled.items()}
    found: dict[str, str] = {}
    for key in keys:
        names = [key.removeprefix(prefix) for prefix in PREFIXES if key.startswith(prefix)]
        layer = next((spelled[name] for name in names if name in spelled), None)
        if layer is None and key.startswith(UNDERSCORED):
            layer = underscored.get(key.removeprefix(UNDERSCORED))
        if layer is not None:
            found[key] = layer
    if unknown := sorted(set(keys) - found.keys()):
        raise ValueError(
            prefix_fault(spelled, unknown)
            or f"this model has no layer for its keys {list_names(unknown, MAX_NAMED)}; take the model it is for"
        )
    if twice := sorted(layer for layer, count in Counter(found.values()).items() if count > 1):
        raise ValueError(f"it changes {list_names(twice, MAX_NAMED)} by keys of several spellings; remove one of them")
    return found


def _spellings(model: VideoModel) -> dict[str, str]:
    """Return the layers of a model by their names in files: those of the model itself and of its authors."""
    layers = [name.removesuffix(".weight") for name in parameter_shapes(model) if name.endswith(".weight")]
    if not isinstance(model, PublishedTransformer):
        return {layer: layer for layer in layers}
    spelled = {layer.partition(".")[2]: layer for layer in layers}
    if not model.family.has_original_names:
        return spelled
    original = {model.family.original_name(f"{name}.weight"): layer for name, layer in spelled.items()}
    return {name.removesuffix(".weight"): layer for name, layer in original.items()} | spelled
