"""Forward pass, backward pass and update behind one interface: plain PyTorch in one process, DeepSpeed ZeRO in several.

Only this module imports DeepSpeed, and only when a `DeepSpeedEngine` is opened.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.checkpoints.fragments import Fragment
from training.network import InitialiseWeight, VideoModel, trained_parameters
from training.optimizers import MOMENTS, OPTIMIZERS, SkippableAdamW, set_lr
from training.settings import TrainSettings
from training.zero import (
    JoinedOutput,
    ShardedStart,
    deepspeed_config,
    initialise_sharded,
    reducing_during_backward,
    require_input_gradients,
    without_compiled_muon,
)

EXCHANGED_ELEMENTS = 16 << 20
"""Elements that weights and their averages exchange at a time: 64 MiB."""


class NonFiniteGradientError(ArithmeticError):
    """The gradient's norm is infinite or not a number; the weights were not updated with it."""


class Engine(abc.ABC):
    """A model in training. All ranks make the same calls in the same sequence, and every method may communicate."""

    rank: int
    world_size: int
    context_parallel: int
    """Number of neighbouring ranks that get the same samples and share their tokens."""
    device: torch.device
    replicated: bool
    """Whether every rank holds all weights and moments instead of a shard of them."""
    _optimizer: SkippableAdamW

    @property
    def data_rank(self) -> int:
        """Index of this rank's share of a step's samples, below `data_world_size`."""
        return self.rank // self.context_parallel

    @property
    def data_world_size(self) -> int:
        """Number of shares that a step's samples are divided into."""
        return self.world_size // self.context_parallel

    @abc.abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """Return the model's outputs; inside `torch.no_grad` nothing is kept for a backward pass."""

    @abc.abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch, summed over micro-batches and ranks; `last` marks the step's last
        micro-batch.
        """

    @abc.abstractmethod
    def step(self, lr: float, max_norm: float = math.inf) -> float:
        """Clip the gradients, update the weights and clear the gradients; return the gradients' global norm before
        clipping.

        The norm is the same on all ranks. If it is above `max_norm`, the step is skipped: gradients are cleared,
        weights and moments stay unchanged. Raises `NonFiniteGradientError` on all ranks if the norm is not finite.
        """

    @abc.abstractmethod
    def weight_shards(self) -> list[Tensor]:
        """Return this rank's part of the fp32 weights that train: the tensors themselves that are updated.

        Under ZeRO they are flat and unnamed.
        """

    @abc.abstractmethod
    def fragments(self) -> list[Fragment]:
        """Return the ranges of parameters that the weight shards hold; elements outside every fragment are padding."""

    @abc.abstractmethod
    def full_parameters(self, on_all_ranks: bool = False) -> dict[str, Tensor]:
        """Return a copy of all weights that train by name, fp32 on the CPU, gathered from all ranks.

        Ranks other than 0 get an empty dictionary unless `on_all_ranks`. Weights are gathered one at a time, so a rank
        that keeps no copy never holds more than one whole weight.
        """

    @abc.abstractmethod
    def refresh_model_weights(self) -> None:
        """Copy the weight shards to the weights that the model computes with, after the shards were written to."""

    @abc.abstractmethod
    def _optimized_tensors(self) -> list[Tensor]:
        """Return the tensors that the optimizer updates."""

    def moments(self) -> dict[str, list[Tensor]]:
        """Return, per name of `MOMENTS`, one tensor per weight shard: the tensors themselves that are updated, zeros
        before the first step.
        """
        states = [self._optimizer.state_of(tensor) for tensor in self._optimized_tensors()]
        return {name: [state[name] for state in states] for name in MOMENTS}

    @property
    def updates(self) -> int:
        """Number of updates of the weights, without skipped steps; Adam's bias correction depends on it."""
        return int(self._optimizer.state_of(self._optimized_tensors()[0])["step"])

    @updates.setter
    def updates(self, count: int) -> None:
        for tensor in self._optimized_tensors():
            self._optimizer.state_of(tensor)["step"].fill_(count)

    def all_sum(self, values: Iterable[float]) -> list[float]:
        """Return the sum over ranks of each value, in float64."""
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def all_gather(self, values: list[str]) -> list[str]:
        """Return the values of all ranks, sorted by rank."""
        if self.world_size == 1:
            return values
        by_rank: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(by_rank, values)
        return [value for rank_values in by_rank for value in rank_values]

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill a tensor of all ranks with the values that it has on rank `source`."""
        if self.world_size > 1:
            dist.broadcast(tensor, source)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def swapped_weights(self, replacement: list[Tensor], computing: bool = False) -> Iterator[None]:
        """Exchange the values of the weight shards and of `replacement` inside the block, for `full_parameters` to
        gather, and if `computing` for `forward` too.
        """
        _exchange(self.weight_shards(), replacement)
        try:
            if computing:
                self.refresh_model_weights()
            yield
        finally:
            _exchange(self.weight_shards(), replacement)
            if computing:
                self.refresh_model_weights()


def open_engine(
    model: nn.Module, settings: TrainSettings, device: torch.device, initialise_weight: InitialiseWeight | None = None
) -> Engine:
    """Return the engine for these settings, which trains the weights of the model that require a gradient.

    With several workers or ZeRO, `torch.distributed` must be initialised; `workers: auto`, which `training.run`
    replaces by a number, is one process.

    A `VideoModel` that was built under `torch.device("meta")` gets memory here, and initial weights by
    `initialise_weight`, or else from torch's global random state. With ZeRO-3 this happens one weight at a time and
    each rank keeps its shard of it, so the model may be larger than a device's memory.

    Matrix products of fp32 in this process are in TF32 from now on if the precision is tf32, and otherwise exact.
    """
    torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
    if _is_on_meta(model):
        initialise_weight = initialise_weight or model.weight_initialiser()
        if settings.zero_stage != 3:
            model.to_empty(device=device)
            for name, parameter in model.named_parameters():
                initialise_weight(parameter, name)
    if settings.context_parallel > 1:
        assert isinstance(model, VideoModel)
        group, _ = dist.new_subgroups(group_size=settings.context_parallel)
        model.enable_context_parallel(group)
    if settings.workers in (1, "auto") and settings.zero_stage == 0:
        return TorchEngine(model, settings, device)
    return DeepSpeedEngine(model, settings, device, initialise_weight)


class TorchEngine(Engine):
    """An engine of one process in fp32, in plain PyTorch."""

    replicated = True

    def __init__(self, model: nn.Module, settings: TrainSettings, device: torch.device) -> None:
        self.rank, self.world_size, self.context_parallel, self.device = 0, 1, 1, device
        self._model = model.to(device)
        self._optimizer = OPTIMIZERS[settings.optimizer](self._model, settings)
        self._clip_norm = settings.clip_norm

    def forward(self, *inputs: Any) -> Any:
        return self._model(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        torch.autograd.backward(loss)

    def step(self, lr: float, max_norm: float = math.inf) -> float:
        norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm))
        set_lr(self._optimizer, lr)
        if _is_accepted(norm, max_norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return _checked_norm(norm)

    def weight_shards(self) -> list[Tensor]:
        return [parameter.data for parameter in self._optimized_tensors()]

    def fragments(self) -> list[Fragment]:
        return _whole_parameters(self._model)

    def full_parameters(self, on_all_ranks: bool = False) -> dict[str, Tensor]:
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in trained_parameters(self._model)
        }

    def refresh_model_weights(self) -> None:
        pass

    def _optimized_tensors(self) -> list[Tensor]:
        return [parameter for _, parameter in trained_parameters(self._model)]


class DeepSpeedEngine(Engine):
    """A data-parallel engine of any number of processes, with ZeRO stage 0 (nothing is sharded) to 3 (weights are
    sharded too).
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        device: torch.device,
        initialise_weight: InitialiseWeight | None = None,
    ) -> None:
        """Open the engine; `initialise_weight` is needed for a model without memory, under ZeRO-3."""
        deepspeed = _import_deepspeed(device)
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.context_parallel = settings.context_parallel
        self._stage, self._clip_norm = settings.zero_stage, settings.clip_norm
        self.replicated = self._stage == 0
        # Stage 3 gathers frozen weights too; other stages communicate those that train.
        communicated = [one for one in model.parameters() if one.requires_grad or self._stage == 3]
        config = deepspeed_config(settings, sum(parameter.numel() for parameter in communicated))
        if _is_on_meta(model):
            assert initialise_weight is not None
            dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
            initialise_sharded(deepspeed, model, config, ShardedStart(initialise_weight, dtype, device))
        else:
            model = model.to(device)
        if self._stage == 3:
            self._joined_output = JoinedOutput(model)
            if not all(parameter.requires_grad for parameter in model.parameters()):
                require_input_gradients(model)
        self._optimizer = OPTIMIZERS[settings.optimizer](model, settings)
        with reducing_during_backward(deepspeed):
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=self._optimizer, dist_init_required=False, config=config
            )

    def forward(self, *inputs: Any) -> Any:
        output = self._engine(*inputs)
        return self._joined_output.split(output) if self._stage == 3 else output

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over ranks.
        self._engine.backward(loss * self.world_size)

    def step(self, lr: float, max_norm: float = math.inf) -> float:
        set_lr(self._engine.optimizer, lr)
        if self._stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self._engine.module.parameters(), self._clip_norm))
            self._optimizer.skips_update = lambda: not _is_accepted(norm, max_norm)
            self._engine.step()
            return _checked_norm(norm)
        optimizer = self._engine.optimizer
        self._optimizer.skips_update = lambda: not _is_accepted(float(optimizer._global_grad_norm), max_norm)
        self._engine.step()
        return _checked_norm(float(optimizer._global_grad_norm))

    def weight_shards(self) -> list[Tensor]:
        return [tensor.data for tensor in self._optimized_tensors()]

    def fragments(self) -> list[Fragment]:
        if self._stage == 0:
            return _whole_parameters(self._engine.module)
        held = [self._fragment(name, parameter) for name, parameter in trained_parameters(self._engine.module)]
        return sorted((one for one in held if one and one.length > 0), key=lambda one: (one.shard, one.offset))

    def _fragment(self, name: str, parameter: Any) -> Fragment | None:
        """Return this rank's range of a parameter, from the attributes that DeepSpeed sets on the parameter."""
        if self._stage < 3:
            mapping = parameter._hp_mapping
            if mapping is None:
                return None
            in_shard, in_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
            return Fragment(name, in_parameter.start, in_shard.numel, mapping.param_group_index, in_shard.start)
        # Stage 3 divides each parameter into one equal part per rank, and pads the last parts.
        optimizer = self._engine.optimizer
        shard, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = self.rank * part
        return Fragment(name, start, min(part, parameter.ds_numel - start), shard, offset)

    def full_parameters(self, on_all_ranks: bool = False) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        full: dict[str, Tensor] = {}
        for name, parameter in trained_parameters(self._engine.module):
            whole = parameter.detach() if self._stage == 0 else safe_get_full_fp32_param(parameter)
            if on_all_ranks or self.rank == 0:
                full[name] = whole.to("cpu", torch.float32, copy=True)
        return full

    def refresh_model_weights(self) -> None:
        """Copy the weights the way DeepSpeed does when it loads its own checkpoints."""
        optimizer = self._engine.optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            optimizer._partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def _optimized_tensors(self) -> list[Tensor]:
        if self._stage == 0:
            return [parameter for _, parameter in trained_parameters(self._engine.module)]
        name = "fp32_partitioned_groups_flat" if self._stage == 3 else "single_partition_of_fp32_groups"
        flat: list[Tensor] = getattr(self._engine.optimizer, name)
        return flat


@torch.no_grad()
def _exchange(tensors: list[Tensor], others: list[Tensor]) -> None:
    """Exchange the values of two lists of tensors in place, in chunks: a copy of all weights may not fit in memory."""
    for tensor, other in zip(tensors, others, strict=True):
        for part, other_part in zip(_chunks(tensor), _chunks(other), strict=True):
            kept = part.clone()
            part.copy_(other_part)
            other_part.copy_(kept)


def _chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor.view(-1), EXCHANGED_ELEMENTS) if tensor.is_contiguous() else (tensor,)


def _is_on_meta(model: nn.Module) -> TypeGuard[VideoModel]:
    """Return whether a model has no memory yet; only a `VideoModel` may, since it can initialise its weights later."""
    return isinstance(model, VideoModel) and any(parameter.is_meta for parameter in model.parameters())


def _whole_parameters(model: nn.Module) -> list[Fragment]:
    """Return one fragment per parameter that trains, each in a shard of its own."""
    trained = enumerate(trained_parameters(model))
    return [Fragment(name, 0, parameter.numel(), shard, 0) for shard, (name, parameter) in trained]


def _is_accepted(norm: float, max_norm: float) -> bool:
    return math.isfinite(norm) and norm <= max_norm


def _checked_norm(norm: float) -> float:
    if not math.isfinite(norm):
        raise NonFiniteGradientError(f"the gradient's norm is {norm}")
    return norm


def _import_deepspeed(device: torch.device) -> Any:
    """Return the module `deepspeed`, set to compile nothing for a CPU: its shared-memory collectives would need a
    compiler and 155 s.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for handler in (logging.getLogger("DeepSpeed"), deepspeed.utils.logger):
        handler.setLevel(logging.WARNING)
    return without_compiled_muon(deepspeed)
