"""LAION's aesthetic heads: linear maps from a CLIP embedding to how much people like an image.

Both published heads are linear. `sa_0_4_vit_l_14_linear.pth` is one layer. The "improved aesthetic predictor"
(`sac+logos+ava1-l14-linearMSE`) is five, 768-1024-128-64-16-1, without activations between them (dropout has no
effect outside of training). So a head is a vector and a number, computed once in float64. A head with activations
(`reluMSE`) has the same keys and cannot be recognised: do not use one.

Shape legend: D numbers of an embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.arrays import Float32Array, Float64Array
from cluster.weight_files import HUB_PREFIX
from pipelines.engine.step import RunError

_LAYER = re.compile(r"(?:layers\.(\d+)\.)?(weight|bias)")


@dataclass(frozen=True)
class Head:
    """The map score = weight . embedding + bias; `weight` is `[D]`."""

    weight: Float64Array
    bias: float

    def __call__(self, embedding_D: Float32Array) -> float:
        return float((self.weight * embedding_D).sum() + self.bias)


def fetch(head: str, revision: str) -> Path:
    """Return the path of a head's file, downloaded if `head` is `hf-hub:owner/name/file`.

    Raises `RunError` if the download fails.
    """
    if not head.startswith(HUB_PREFIX):
        return Path(head)
    from huggingface_hub import hf_hub_download

    owner, name, file = head.removeprefix(HUB_PREFIX).split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision))
    except Exception as error:
        raise RunError(f"{head} cannot be fetched: {type(error).__name__}: {error}") from error


def load_head(path: Path, dim: int, clip_model: str) -> Head:
    """Read a head from a .safetensors, .pth or .pt file, for embeddings of `dim` numbers.

    Raises `RunError` if the file cannot be read, or is no head for the embeddings of `clip_model` (its name).
    """
    layers: dict[int, dict[str, Float64Array]] = {}
    for key, tensor in _tensors(path).items():
        match = _LAYER.fullmatch(key)
        if not match:
            raise RunError(
                f"{path}: '{key}' is not a key of a known head: "
                "weight and bias of one layer, or layers.N.weight and layers.N.bias of several"
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
        expected, actual = layer["weight"].shape[1], len(bias)
        if expected != actual:
            if number == min(layers):
                mismatch = f"embeddings of {expected} numbers, and {clip_model} gives {actual}"
                raise RunError(f"{path}: layer {number} takes {mismatch}: take the CLIP model it was trained on")
            raise RunError(f"{path}: layer {number} takes {expected} numbers, and the layer before gives {actual}")
        weight, bias = layer["weight"] @ weight, layer["weight"] @ bias + layer["bias"]
    if len(bias) != 1:
        raise RunError(f"{path}: the head gives {len(bias)} numbers per image; a score is one")
    return Head(weight[0], float(bias[0]))


def _tensors(path: Path) -> dict[str, Float64Array]:
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
