"""Weight files of the autoencoder `causal`: safetensors with the architecture of the network in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cluster import storage
from training.autoencoders._causal_convolutions import CausalArchitecture
from training.autoencoders._causal_network import CausalNetwork

HEADER = "worldloom.causal"
"""Key of the header's JSON object with `format`, `shape` (the architecture), `about` and `digest` (of the values)."""
FORMAT = 1
MEAN, STD = "latent.mean", "latent.std"
"""Names of the statistics among the tensors."""


def _values(data: bytes) -> bytes:
    """Return the values of the tensors of a safetensors file, which come after its header."""
    return data[8 + int.from_bytes(data[:8], "little") :]


def new_network(architecture: CausalArchitecture, seed: int, bf16: bool = False) -> CausalNetwork:
    """Return an untrained network. The global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CausalNetwork(architecture, bf16)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network with statistics of its latents `[2, C]`: row 0 of first frames, row 1 of all later ones."""

    network: CausalNetwork
    mean_2C: Tensor
    std_2C: Tensor
    about: Mapping[str, Any]
    """A description of the training for readers of the file; nothing depends on it."""

    def to_bytes(self) -> bytes:
        """Return the content of a weight file: trained weights in bfloat16, linear maps and statistics in fp32."""
        trained = dict(self.network.named_parameters())
        tensors = {
            name: value.detach().to("cpu", torch.bfloat16 if name in trained else torch.float32).contiguous()
            for name, value in self.network.state_dict().items()
        }
        tensors |= {MEAN: self.mean_2C.float().contiguous(), STD: self.std_2C.float().contiguous()}
        card = {"format": FORMAT, "shape": asdict(self.network.architecture), "about": dict(self.about)}
        card["digest"] = storage.digest(_values(save_tensors(tensors)))
        data: bytes = save_tensors(tensors, {HEADER: json.dumps(card, sort_keys=True)})
        return data

    @classmethod
    def from_bytes(cls, data: bytes, name: str, bf16: bool = False) -> TrainedNetwork:
        """Return the content of a weight file, all in fp32.

        Raises `ValueError` with the file's `name` if it is damaged or no weight file of `causal`.
        """
        try:
            tensors = load_tensors(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            card = json.loads(header["__metadata__"][HEADER])
            if card["format"] != FORMAT:
                raise ValueError(f"format {card['format']}; this version reads {FORMAT}")
            if card.get("digest") not in (None, storage.digest(_values(data))):
                raise ValueError("it is damaged: its weights do not have the digest in its header")
            mean_2C, std_2C = tensors.pop(MEAN), tensors.pop(STD)
            network = new_network(CausalArchitecture(**card["shape"]), 0, bf16)
            network.load_state_dict({key: value.float() for key, value in tensors.items()})
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            message = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{name}: not a weight file of the autoencoder causal: {type(error).__name__}: {message}; "
                "give a file that `worldloom train-autoencoder` wrote"
            ) from error
        return cls(network.eval().requires_grad_(False), mean_2C, std_2C, card["about"])
