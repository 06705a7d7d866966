"""Memory per GPU that whole fine-tuning of published models needs besides activations, by ZeRO stage.

    python -m benchmarks.published_memory

Weights are counted on the meta device. The sizes are those of the published configurations. The last line is JSON.
"""

from __future__ import annotations

import json
from typing import Any

import diffusers
import torch

from training.memory import GIB, Sharding

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Wan 1.3B": ("WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "Wan TI2V-5B": (
        "WanTransformer3DModel",
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
    ),
    "Wan 14B": ("WanTransformer3DModel", {}),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}),
}
"""Class of diffusers and its settings, where they differ from the class's defaults, by model."""
RANKS = 8


def count_weights(model: str) -> int:
    """Return the number of weights of a model."""
    class_name, config = MODELS[model]
    with torch.device("meta"):
        transformer = getattr(diffusers, class_name)(**config)
    return sum(parameter.numel() for parameter in transformer.parameters())


def main() -> None:
    """Print the table, and the same as JSON."""
    result: dict[str, dict[str, float]] = {}
    for model in MODELS:
        n_weights = count_weights(model)
        stages = {
            f"ZeRO {stage}": round(Sharding(2, stage, RANKS).state_bytes(n_weights) / GIB, 1) for stage in (1, 2, 3)
        }
        stages["ZeRO 3, offloaded"] = round(Sharding(2, 3, RANKS, cpu_offload=True).state_bytes(n_weights) / GIB, 1)
        result[model] = {"weights": n_weights, **stages}
        print(f"{model}: {n_weights / 1e9:.2f} billion weights; GiB per GPU of {RANKS}: {stages}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
