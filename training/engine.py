"""Forward, backward and update behind one interface: plain PyTorch in one process, DeepSpeed ZeRO in several.

The only module that touches DeepSpeed, and it does so only when an engine of it is opened.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.settings import TrainSettings


class Engine(abc.ABC):
    """A model in training. All ranks make the same calls in the same order; every method may communicate."""

    rank: int
    world_size: int
    device: torch.device

    @abc.abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """What the model makes of its inputs; inside `torch.no_grad` it trains nothing."""

    @abc.abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-step's gradients, which are summed over micro-steps and ranks; `last` is the step's last micro-step."""

    @abc.abstractmethod
    def step(self, lr: float) -> float:
        """Clip, update the weights, clear the gradients; returns the gradient's global norm before clipping."""

    @abc.abstractmethod
    def shards(self) -> list[Tensor]:
        """The part this rank holds of the fp32 weights, the very tensors that are updated; flat and anonymous under ZeRO."""

    @abc.abstractmethod
    def full_parameters(self) -> dict[str, Tensor]:
        """All weights by name, fp32, on the CPU, copied from the shards of all ranks."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights and optimizer state of this rank into a folder that all ranks of a node share."""

    @abc.abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in as many processes; only into an engine that has not stepped yet."""

    def sum(self, values: Iterable[float]) -> list[float]:
        """Sums over ranks, in float64."""
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def gather(self, values: list[str]) -> list[str]:
        """All ranks' values, in order of rank."""
        if self.world_size == 1:
            return values
        by_rank: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(by_rank, values)
        return [value for one in by_rank for value in one]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def swapped(self, replacement: list[Tensor]) -> Iterator[None]:
        """For the length of the block, other values in the place of the shards, for `full_parameters` to gather."""
        kept = [shard.detach().clone() for shard in self.shards()]
        with torch.no_grad():
            torch._foreach_copy_(self.shards(), replacement)
            try:
                yield
            finally:
                torch._foreach_copy_(self.shards(), kept)


def open_engine(model: nn.Module, settings: TrainSettings, device: torch.device) -> Engine:
    """The engine for these settings; with several workers or ZeRO, `torch.distributed` is initialised already."""
    if settings.workers == 1 and settings.zero_stage == 0:
        return TorchEngine(model, settings, device)
    return DeepSpeedEngine(model, settings, device)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, gains and vectors do not, and neither do the modulation tables, whose rows are vectors."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim < 2 or "table" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """PyTorch's fused AdamW; DeepSpeed's own would compile C++ on first use, 163 s on two cores."""
    return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=settings.betas, fused=True)


class TorchEngine(Engine):
    """One process, fp32, plain PyTorch."""

    def __init__(self, model: nn.Module, settings: TrainSettings, device: torch.device) -> None:
        self.rank, self.world_size, self.device = 0, 1, device
        self._model = model.to(device)
        self._optimizer = adamw(self._model, settings)
        self._clip_norm = settings.clip_norm

    def forward(self, *inputs: Any) -> Any:
        return self._model(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        torch.autograd.backward(loss)

    def step(self, lr: float) -> float:
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        set_lr(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def shards(self) -> list[Tensor]:
        return [parameter.data for parameter in self._model.parameters()]

    def full_parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach().to("cpu", torch.float32, copy=True) for name, parameter in self._model.named_parameters()}

    def save(self, folder: Path) -> None:
        torch.save({"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "engine.pt", map_location=self.device, weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


class DeepSpeedEngine(Engine):
    """Data parallel in any number of processes, with ZeRO stage 0 (nothing sharded) to 3 (weights sharded)."""

    TAG = "engine"

    def __init__(self, model: nn.Module, settings: TrainSettings, device: torch.device) -> None:
        deepspeed = import_deepspeed(device)
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self._stage, self._clip_norm = settings.zero_stage, settings.clip_norm
        model = model.to(device)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=adamw(model, settings),
            dist_init_required=False,
            config={
                # Batches come ready from the loader; these two only have to agree with each other.
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                # Stage 0 reports no norm, so it is clipped here.
                "gradient_clipping": settings.clip_norm if settings.zero_stage else 0.0,
                "bf16": {"enabled": settings.precision == "bf16"},
                "zero_optimization": {"stage": settings.zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )

    def forward(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks.
        self._engine.backward(loss * self.world_size)

    def step(self, lr: float) -> float:
        set_lr(self._engine.optimizer, lr)
        if self._stage == 0:
            norm = nn.utils.clip_grad_norm_(self._engine.module.parameters(), self._clip_norm)
            self._engine.step()
        else:
            self._engine.step()
            norm = self._engine.get_global_grad_norm()
        return float(norm)

    def shards(self) -> list[Tensor]:
        if self._stage == 0:
            return [parameter.data for parameter in self._engine.module.parameters()]
        optimizer = self._engine.optimizer
        flat = optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups
        return [shard.data for shard in flat]

    def full_parameters(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        full = {}
        for name, parameter in self._engine.module.named_parameters():
            whole = parameter.detach() if self._stage == 0 else safe_get_full_fp32_param(parameter)
            full[name] = whole.to("cpu", torch.float32, copy=True)
        return full

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=self.TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=self.TAG)
        if loaded is None:
            raise ValueError(f"{folder}: DeepSpeed finds no checkpoint of {self.world_size} workers there")


def set_lr(optimizer: Any, lr: float) -> None:
    """Set the learning rate of every group of a PyTorch optimizer, or of DeepSpeed's wrapper of one."""
    groups: list[Mapping[str, Any]] = optimizer.param_groups
    for group in groups:
        group["lr"] = lr  # type: ignore[index]


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told to compile nothing on a CPU: its shared-memory collectives would take a compiler and 155 s."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for handler in (logging.getLogger("DeepSpeed"), deepspeed.utils.logger):
        handler.setLevel(logging.WARNING)
    return deepspeed
