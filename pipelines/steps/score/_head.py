"""LAION's heads on CLIP embeddings that say how much people like a picture: files of weights read into one linear map.

Both published heads are linear: `sa_0_4_vit_l_14_linear.pth` is one layer, and the "improved aesthetic predictor" (`sac+logos+ava1-l14-linearMSE`)
is five, 768-1024-128-64-16-1, without activations between them (dropout does nothing outside of training). So a head is a
vector and a number, worked out once in float64. A head that has activations (`reluMSE`) has the same keys and cannot be told: do not use one.

Shape legend: D numbers of an embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.weight_files import HUB
from pipelines.engine.step import RunError

Wide = NDArray[np.float64]

_LAYER = re.compile(r"(?:layers\.(\d+)\.)?(weight|bias)")


@dataclass(frozen=True)
class Head:
    """score = weight . embedding + bias; `weight` is `[D]`."""

    weight: Wide
    bias: float

    def __call__(self, embedding_D: NDArray[np.float32]) -> float:
        return float((self.weight * embedding_D).sum() + self.bias)


def fetch(place: str, revision: str) -> Path:
    """The file of a head: a path, or `hf-hub:owner/name/file`. Raises `RunError` where the hub does not give it."""
    if not place.startswith(HUB):
        return Path(place)
    from huggingface_hub import hf_hub_download

    owner, name, file = place.removeprefix(HUB).split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision))
    except Exception as error:
        raise RunError(f"{place} cannot be fetched: {type(error).__name__}: {error}") from error


def load_head(path: Path, dim: int, tower: str) -> Head:
    """Read a head from .safetensors, .pth or .pt, for embeddings of `dim` numbers. Raises `RunError` for one that does not fit."""
    layers: dict[int, dict[str, Wide]] = {}
    for key, tensor in _tensors(path).items():
        match = _LAYER.fullmatch(key)
        if not match:
            raise RunError(
                f"{path}: '{key}' is in no head we know: weight and bias of one layer, or layers.N.weight and layers.N.bias of several"
            )
        layers.setdefault(int(match[1] or 0), {})[match[2]] = tensor
    if not layers:
        raise RunError(f"{path} is empty")
    weight, bias = np.eye(dim), np.zeros(dim)
    for number, layer in sorted(layers.items()):
        if (
            set(layer) != {"weight", "bias"}
            or layer["weight"].ndim != 2
            or layer["bias"].shape != layer["weight"].shape[:1]
        ):
            raise RunError(f"{path}: layer {number} is not a weight of two dimensions with its bias")
        if layer["weight"].shape[1] != len(bias):
            wants, gets = layer["weight"].shape[1], len(bias)
            of = (
                f"embeddings of {wants} numbers, and {tower} gives {gets}: take the CLIP model it was trained on"
                if number == min(layers)
                else ""
            )
            raise RunError(
                f"{path}: layer {number} takes " + (of or f"{wants} numbers, and the layer before gives {gets}")
            )
        weight, bias = layer["weight"] @ weight, layer["weight"] @ bias + layer["bias"]
    if len(bias) != 1:
        raise RunError(f"{path}: the head gives {len(bias)} numbers for a picture; a score is one")
    return Head(weight[0], float(bias[0]))


def _tensors(path: Path) -> dict[str, Wide]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return {key: value.astype(np.float64) for key, value in load_file(path).items()}
        import torch

        return {
            key: value.double().numpy()
            for key, value in torch.load(path, map_location="cpu", weights_only=True).items()
        }
    except Exception as error:
        raise RunError(f"{path} cannot be read as the weights of a head: {type(error).__name__}: {error}") from error
