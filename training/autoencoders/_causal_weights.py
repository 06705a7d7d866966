"""Files of weights of the autoencoder `causal`: safetensors with the shape of the network in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from training.autoencoders._causal_network import CausalNetwork, Shape

HEADER = "worldloom.causal"
FORMAT = 1
MEAN, STD = "latent.mean", "latent.std"


@dataclass(frozen=True)
class Trained:
    """A trained network and the statistics `[2, C]` of its latents: those of first frames, then those of all later ones."""

    network: CausalNetwork
    mean_2C: Tensor
    std_2C: Tensor
    about: Mapping[str, Any]
    """How it was trained, for people."""


def new_network(shape: Shape, seed: int, bf16: bool = False) -> CausalNetwork:
    """An untrained network; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CausalNetwork(shape, bf16)


def write_trained(trained: Trained) -> bytes:
    """As the bytes of a file: what was trained in bfloat16, linear maps and statistics in fp32."""
    halved = dict(trained.network.named_parameters())
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16 if name in halved else torch.float32).contiguous()
        for name, value in trained.network.state_dict().items()
    }
    tensors |= {MEAN: trained.mean_2C.float().contiguous(), STD: trained.std_2C.float().contiguous()}
    card = {"format": FORMAT, "shape": trained.network.card(), "about": dict(trained.about)}
    data: bytes = save_tensors(tensors, {HEADER: json.dumps(card, sort_keys=True)})
    return data


def read_trained(data: bytes, name: str, bf16: bool = False) -> Trained:
    """The network, in fp32, from a file's bytes. Raises `ValueError` naming the file for one that is not ours or is damaged."""
    try:
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        card = json.loads(header["__metadata__"][HEADER])
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']}; this version reads {FORMAT}")
        mean_2C, std_2C = tensors.pop(MEAN), tensors.pop(STD)
        network = new_network(Shape(**card["shape"]), 0, bf16)
        network.load_state_dict({key: value.float() for key, value in tensors.items()})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name}: no weights of the autoencoder causal: {type(error).__name__}: {message}; train some anew"
        ) from error
    return Trained(network.eval().requires_grad_(False), mean_2C, std_2C, card["about"])
