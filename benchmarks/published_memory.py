"""Memory per GPU that fine-tuning of published models needs, whole or by LoRA, by ZeRO stage; nothing is measured.

    python -m benchmarks.published_memory

Weights are counted without memory. Activations are those that the backward pass needs, in bf16, of one clip with all
blocks recomputed: they are counted on fake tensors. The sizes are those of the published configurations. Networks that
do not train and are beside the model in training are counted too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cluster.config import validate
from training.adapters.lora import add_adapter
from training.adapters.quantised import Bits
from training.adapters.settings import AdapterSettings
from training.fitting import n_frozen
from training.memory import GIB, Sharding
from training.models._cogvideox import SCHEDULER
from training.models._published_network import PublishedTransformer
from training.models._wan import IMAGE_TOKENS
from training.models.diffusers import FAMILIES, Diffusers
from training.network import Condition, VideoModel, trained_parameters

RANKS = 8
BYTES = 2
"""Bytes of a number in bfloat16."""


CLIP_DIM = 1280


def clip_and_autoencoder() -> int:
    """Return the bytes of Wan's CLIP, in fp32, and of its autoencoder."""
    sizes = {"hidden_size": CLIP_DIM, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    with torch.device("meta"):
        clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, patch_size=14))
        return 4 * numbers(clip) + BYTES * numbers(diffusers.AutoencoderKLWan())


def text_connector() -> int:
    """Return the bytes of the network that fills texts of LTX-2 up with registers."""
    with torch.device("meta"):
        return BYTES * numbers(LTX2TextConnectors().video_connector)


def numbers(network: nn.Module) -> int:
    """Return the number of weights of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class Model:
    """A published transformer, and the latents of one clip."""

    class_name: str
    config: dict[str, Any]
    """Settings of the class, where they differ from its defaults."""
    latent: tuple[int, int, int]
    """Frames, rows and columns."""
    depth_keys: tuple[str, ...] = ("num_layers",)
    """Settings with the number of blocks."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the scheduler that a family asks for."""
    beside: Callable[[], int] | None = None
    """Returns the bytes of the networks that do not train beside the model."""

    def settings(self, **config: Any) -> Diffusers:
        """Return the settings of the model, without files; `config` replaces parts of its configuration."""
        with torch.device("meta"):
            transformer = getattr(diffusers, self.class_name)(**self.config | config)
        stored = dict(transformer.config) | {"_class_name": self.class_name}
        pipeline = {"_class_name": FAMILIES[self.class_name].pipelines[0]}
        files = {"transformer": stored, "pipeline": pipeline, "scheduler": dict(self.scheduler)}
        if stored.get("image_dim"):
            files["image_encoder"] = {"hidden_size": CLIP_DIM}
        return validate(
            Diffusers, {"name": "diffusers", "path": "./none", "checkpointing": "none", "config": json_of(files)}
        )


WAN, COGVIDEOX = "WanTransformer3DModel", "CogVideoXTransformer3DModel"
CLIP_480P = (21, 60, 106)
"""81 frames of 848x480 in cells of 4 frames and 8x8 pixels."""
COGVIDEOX_CLIP = (13, 60, 90)
"""49 frames of 720x480."""
MODELS = {
    "Wan 1.3B": Model(WAN, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, CLIP_480P),
    "Wan TI2V-5B": Model(
        WAN,
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
        (21, 30, 52),
    ),
    "Wan 14B": Model(WAN, {}, CLIP_480P),
    "Wan 2.1 I2V 14B": Model(
        WAN,
        {"in_channels": 36, "image_dim": CLIP_DIM, "added_kv_proj_dim": 5120},
        CLIP_480P,
        beside=clip_and_autoencoder,
    ),
    "LTX-Video": Model("LTXVideoTransformer3DModel", {}, (13, 14, 24)),
    "LTX-2": Model("LTX2VideoTransformer3DModel", {}, (16, 16, 24), beside=text_connector),
    "HunyuanVideo": Model("HunyuanVideoTransformer3DModel", {}, CLIP_480P, ("num_layers", "num_single_layers")),
    "CogVideoX-2B": Model(COGVIDEOX, {}, COGVIDEOX_CLIP, scheduler=SCHEDULER),
    "CogVideoX-5B": Model(
        COGVIDEOX,
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        COGVIDEOX_CLIP,
        scheduler=SCHEDULER,
    ),
}
ADAPTER = AdapterSettings(rank=32)
FEW_BITS: tuple[Bits, ...] = (8, 4)


def json_of(value: Any) -> Any:
    """Return a configuration as JSON has it, with lists in place of tuples."""
    return json.loads(json.dumps(value))


def build(settings: Diffusers, adapter: bool, bits: Bits | None = None) -> VideoModel:
    """Return the model without memory, with an adapter beside frozen weights if wanted, and these in few bits."""
    with torch.device("meta"):
        model = PublishedTransformer(settings.family, settings.published, recomputes=False)
        if adapter:
            add_adapter(model, ADAPTER.resolved(settings).model_copy(update={"base_bits": bits}))
    return model


def count_weights(model: str, adapter: bool = False) -> int:
    """Return the number of weights of a model that train: all, or those of an adapter of rank 32."""
    built = build(MODELS[model].settings(), adapter)
    return sum(parameter.numel() for _, parameter in trained_parameters(built))


def kept_bytes(model: VideoModel, settings: Diffusers, latent: tuple[int, int, int]) -> int:
    """Return the bytes that the forward pass of a clip keeps for the backward pass besides weights.

    Each storage counts once. The clip has the longest text.
    """
    own, rule = settings.architecture, settings.family.text
    frames, pair = torch.zeros(latent[0]), torch.zeros(1, 2)
    text_NE = torch.zeros(rule.max_tokens + rule.pooled_tokens, own.text_dim)
    condition = Condition([text_NE], [frames], [frames], [frames], torch.full((1,), 16.0), pair, pair, pair)
    if settings.image_channels:
        condition = replace(condition, images=[torch.zeros(settings.image_channels, *latent)])
    if settings.sees_image:
        condition = replace(condition, image_tokens=[torch.zeros(IMAGE_TOKENS, CLIP_DIM)])
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model([torch.zeros(own.channels, *latent)], condition)
    total = sum(storage.nbytes() for storage in kept.values())
    del outputs
    return total


def activation_bytes(model: Model, adapter: bool) -> int:
    """Return the bytes of activations of one clip: inputs of all blocks, one whole block, and what is outside them."""
    settings = model.settings()
    with_block, outside = (kept_on_fake_tensors(model, adapter, depth) for depth in (1, 0))
    depth, dim, _ = settings.architecture.size
    return max(with_block, outside) + depth * settings.tokens(*model.latent) * dim * BYTES


def kept_on_fake_tensors(model: Model, adapter: bool, depth: int) -> int:
    """Return the bytes that the forward pass of a clip keeps in a model of `depth` blocks that recomputes none."""
    settings = model.settings(**dict.fromkeys(model.depth_keys, depth))
    network = build(settings, adapter and depth > 0).to(torch.bfloat16)
    with FakeTensorMode():
        for module in network.modules():
            for name, weight in module.named_parameters(recurse=False):
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(module, name, nn.Parameter(fake, requires_grad=weight.requires_grad))
        return kept_bytes(network, settings, model.latent)


def table_of(name: str) -> dict[str, float]:
    """Return the numbers of a model: weights, and GiB per GPU."""
    n_weights, n_adapter = count_weights(name), count_weights(name, adapter=True)
    states = {f"ZeRO {stage}": Sharding(BYTES, stage, RANKS).state_bytes(n_weights) for stage in (1, 2, 3)}
    states["ZeRO 3, offloaded"] = Sharding(BYTES, 3, RANKS, cpu_offload=True).state_bytes(n_weights)
    states["activations"] = activation_bytes(MODELS[name], adapter=False)
    states["LoRA, one GPU"] = Sharding(BYTES, 2, 1).state_bytes(n_adapter, n_weights)
    for bits in FEW_BITS:
        frozen = n_frozen(build(MODELS[name].settings(), adapter=True, bits=bits), BYTES)
        states[f"LoRA, one GPU, {bits} bits"] = Sharding(BYTES, 2, 1).state_bytes(n_adapter, frozen)
    states["LoRA, ZeRO 3"] = Sharding(BYTES, 3, RANKS).state_bytes(n_adapter, n_weights)
    states["LoRA, activations"] = activation_bytes(MODELS[name], adapter=True)
    if (beside := MODELS[name].beside) is not None:
        states["beside the model"] = beside()
    in_gib = {key: round(value / GIB, 1) for key, value in states.items()}
    return {"weights": n_weights, "adapter": n_adapter, **in_gib}


def main() -> None:
    """Print the table, and the same as JSON."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    result = {name: table_of(name) for name in MODELS}
    for name, values in result.items():
        print(f"{name}, GiB per GPU of {RANKS}: {values}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
