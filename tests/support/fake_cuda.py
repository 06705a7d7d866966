"""A GPU that computes shapes only, and a count of the operations that make the host wait for it."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = ("_to_copy", "copy_", "lift_fresh_copy")
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim")
"""Operations whose result the host needs, or whose shape depends on values."""
CUDA = torch.device("cuda")

Model = TypeVar("Model", bound=nn.Module)


class HostWaits(TorchDispatchMode):
    """The operations that wait for the device, by name, inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        before, after = _devices((args, kwargs)), _devices(out)
        if name in COPIES and before != after | before and not (before == {"cpu"} and after == {"cpu"}):
            if not _does_not_block(name, args, kwargs):
                self.found[f"{name} {'/'.join(sorted(before))} to {'/'.join(sorted(after))}"] += 1
        elif name in ("index", "index_put", "index_put_") and before == {"cpu", "cuda"}:
            self.found[f"{name} by a CPU tensor"] += 1
        elif name in SYNCHRONISING and before == {"cuda"}:
            self.found[name] += 1
        return out


def _does_not_block(name: str, args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))


def _devices(values: Any) -> set[str]:
    """Return the types of the devices of all tensors with elements."""
    return {value.device.type for value in tree_leaves(values) if isinstance(value, Tensor) and value.numel()}


def on_fake_cuda(model: Model, dtype: torch.dtype) -> Model:
    """Give a model that was built under `torch.device("meta")` weights on the fake GPU, inside a `FakeTensorMode`."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, device=CUDA, dtype=dtype))
    return model
