"""Forward, backward and update behind one interface: plain PyTorch in one process, DeepSpeed ZeRO in several.

The only module that touches DeepSpeed, and it does so only when an engine of it is opened.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.checkpoints.fragments import Fragment
from training.network import VideoModel
from training.settings import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of gradients and of their squares, as PyTorch calls them."""


class NonFiniteGradientError(ArithmeticError):
    """The gradient's norm is not a number or has no bound; the weights were not updated with it."""


class Engine(abc.ABC):
    """A model in training. All ranks make the same calls in the same order; every method may communicate."""

    rank: int
    world_size: int
    context_parallel: int
    """Neighbouring ranks that are given the same samples and share their tokens."""
    device: torch.device
    replicated: bool
    """Whether every rank holds all weights and moments, and not only a part of its own."""
    _optimizer: GuardedAdamW

    @property
    def data_rank(self) -> int:
        """Whose samples this rank is given, of `data_world_size` shares of a step."""
        return self.rank // self.context_parallel

    @property
    def data_world_size(self) -> int:
        """Among how many a step's samples are shared out."""
        return self.world_size // self.context_parallel

    @abc.abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """What the model makes of its inputs; inside `torch.no_grad` it trains nothing."""

    @abc.abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-step's gradients, which are summed over micro-steps and ranks; `last` is the step's last micro-step."""

    @abc.abstractmethod
    def step(self, lr: float, max_norm: float = math.inf) -> float:
        """Clip, update the weights, clear the gradients; returns the gradient's global norm before clipping, the same on all ranks.

        With a norm above `max_norm` the step is skipped: gradients are cleared, weights and moments stay. Raises
        `NonFiniteGradientError`, on all ranks, where the norm is not finite.
        """

    @abc.abstractmethod
    def shards(self) -> list[Tensor]:
        """The part this rank holds of the fp32 weights, the very tensors that are updated; flat and anonymous under ZeRO."""

    @abc.abstractmethod
    def fragments(self) -> list[Fragment]:
        """Which elements of which parameters the shards hold; what no fragment covers is padding."""

    @abc.abstractmethod
    def full_parameters(self, everywhere: bool = False) -> dict[str, Tensor]:
        """All weights by name, fp32, on the CPU, copied from the shards of all ranks; on ranks other than 0 nothing, unless they come `everywhere`.

        Weights are gathered one at a time, so a rank that keeps none never holds more than one.
        """

    @abc.abstractmethod
    def weights_changed(self) -> None:
        """Bring the weights the model computes with up to date after the shards were written to."""

    @abc.abstractmethod
    def _updated(self) -> list[Tensor]:
        """The tensors that the optimizer updates, as it knows them."""

    def moments(self) -> dict[str, list[Tensor]]:
        """For each of `MOMENTS` a tensor for each shard, the very ones that are updated; zeros before the first step."""
        states = [self._optimizer.state_of(tensor) for tensor in self._updated()]
        return {name: [state[name] for state in states] for name in MOMENTS}

    @property
    def updates(self) -> int:
        """How often the weights were updated, which skipped steps do not count in: what Adam's bias correction goes by."""
        return int(self._optimizer.state_of(self._updated()[0])["step"])

    @updates.setter
    def updates(self, count: int) -> None:
        for tensor in self._updated():
            self._optimizer.state_of(tensor)["step"].fill_(count)

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


def open_engine(
    model: nn.Module, settings: TrainSettings, device: torch.device, optimizer: type[GuardedAdamW] | None = None
) -> Engine:
    """The engine for these settings; with several workers or ZeRO, `torch.distributed` is initialised already.

    The `optimizer` is `GuardedAdamW`, or one of its kind where weights are whole, with `zero_stage` 0.

    A `VideoModel` that was built under `torch.device("meta")` gets memory here and its initial weights, from torch's global random state.
    With ZeRO-3 that is one weight at a time, of which each rank keeps its part, so a model may be larger than what a device holds.
    """
    if settings.zero_stage != 3 and is_on_meta(model):
        model.to_empty(device=device)
        model.initialise()
    if settings.context_parallel > 1:
        assert isinstance(model, VideoModel)
        group, _ = dist.new_subgroups(group_size=settings.context_parallel)
        model.share_tokens(group)
    if settings.workers == 1 and settings.zero_stage == 0:
        return TorchEngine(model, settings, device, optimizer or GuardedAdamW)
    return DeepSpeedEngine(model, settings, device, optimizer or GuardedAdamW)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, gains and vectors do not, and neither do the modulation tables, whose rows are vectors."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        # Of a weight that is spread over ranks there is but its shape.
        n_axes = len(getattr(parameter, "ds_shape", parameter.shape))
        (free if n_axes < 2 or "table" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


class GuardedAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, which updates nothing while `refuses` says so.

    DeepSpeed's own would compile C++ on first use, 163 s on two cores. DeepSpeed knows the gradient's norm only inside of its step, so a
    step cannot be called off from outside; here it is, after all that DeepSpeed does to gradients and before anything is changed.
    """

    refuses: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        """Of a model that is on its device."""
        super().__init__(
            parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=settings.betas, fused=True
        )

    def step(self, closure: Any = None) -> Any:
        return None if self.refuses() else super().step(closure)

    def state_of(self, tensor: Tensor) -> dict[str, Tensor]:
        """Step and moments of a tensor, made as the first step would make them where there are none yet."""
        state: dict[str, Tensor] = self.state[tensor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
            state.update((name, torch.zeros_like(tensor, requires_grad=False)) for name in MOMENTS)
        return state


class TorchEngine(Engine):
    """One process, fp32, plain PyTorch."""

    replicated = True

    def __init__(
        self, model: nn.Module, settings: TrainSettings, device: torch.device, optimizer: type[GuardedAdamW]
    ) -> None:
        self.rank, self.world_size, self.context_parallel, self.device = 0, 1, 1, device
        self._model = model.to(device)
        self._optimizer = optimizer(self._model, settings)
        self._clip_norm = settings.clip_norm

    def forward(self, *inputs: Any) -> Any:
        return self._model(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        torch.autograd.backward(loss)

    def step(self, lr: float, max_norm: float = math.inf) -> float:
        norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm))
        set_lr(self._optimizer, lr)
        if _accepted(norm, max_norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return _finite(norm)

    def shards(self) -> list[Tensor]:
        return [parameter.data for parameter in self._updated()]

    def fragments(self) -> list[Fragment]:
        return _whole(self._model)

    def full_parameters(self, everywhere: bool = False) -> dict[str, Tensor]:
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in self._model.named_parameters()
        }

    def weights_changed(self) -> None:
        pass

    def _updated(self) -> list[Tensor]:
        return list(self._model.parameters())


class DeepSpeedEngine(Engine):
    """Data parallel in any number of processes, with ZeRO stage 0 (nothing sharded) to 3 (weights sharded)."""

    def __init__(
        self, model: nn.Module, settings: TrainSettings, device: torch.device, optimizer: type[GuardedAdamW]
    ) -> None:
        deepspeed = import_deepspeed(device)
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.context_parallel = settings.context_parallel
        self._stage, self._clip_norm = settings.zero_stage, settings.clip_norm
        self.replicated = self._stage == 0
        config = {
            # Batches come ready from the loader; these two only have to agree with each other.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # Stage 0 reports no norm, so it is clipped here.
            "gradient_clipping": settings.clip_norm if settings.zero_stage else 0.0,
            "bf16": {"enabled": settings.precision == "bf16"},
            "zero_optimization": zero_options(settings, sum(parameter.numel() for parameter in model.parameters())),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        if is_on_meta(model):
            spread(deepspeed, model, config, torch.bfloat16 if settings.precision == "bf16" else torch.float32, device)
        else:
            model = model.to(device)
        if self._stage == 3:
            self._outputs = OneOutput(model)
        self._optimizer = optimizer(model, settings)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, dist_init_required=False, config=config
        )

    def forward(self, *inputs: Any) -> Any:
        made = self._engine(*inputs)
        return self._outputs.apart(made) if self._stage == 3 else made

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks.
        self._engine.backward(loss * self.world_size)

    def step(self, lr: float, max_norm: float = math.inf) -> float:
        set_lr(self._engine.optimizer, lr)
        if self._stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self._engine.module.parameters(), self._clip_norm))
            self._optimizer.refuses = lambda: not _accepted(norm, max_norm)
            self._engine.step()
            return _finite(norm)
        optimizer = self._engine.optimizer
        self._optimizer.refuses = lambda: not _accepted(float(optimizer._global_grad_norm), max_norm)
        self._engine.step()
        return _finite(float(optimizer._global_grad_norm))

    def shards(self) -> list[Tensor]:
        return [tensor.data for tensor in self._updated()]

    def fragments(self) -> list[Fragment]:
        if self._stage == 0:
            return _whole(self._engine.module)
        held = [self._fragment(name, parameter) for name, parameter in self._engine.module.named_parameters()]
        return sorted((one for one in held if one and one.length > 0), key=lambda one: (one.shard, one.offset))

    def _fragment(self, name: str, parameter: Any) -> Fragment | None:
        """What this rank holds of a parameter, as DeepSpeed has noted it on the parameter."""
        if self._stage < 3:
            mapping = parameter._hp_mapping
            if mapping is None:
                return None
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            return Fragment(name, there.start, here.numel, mapping.param_group_index, here.start)
        # Stage 3 cuts each parameter into as many equal parts as there are ranks, the last ones padded.
        optimizer = self._engine.optimizer
        shard, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = self.rank * part
        return Fragment(name, start, min(part, parameter.ds_numel - start), shard, offset)

    def full_parameters(self, everywhere: bool = False) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        full: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            whole = parameter.detach() if self._stage == 0 else safe_get_full_fp32_param(parameter)
            if everywhere or self.rank == 0:
                full[name] = whole.to("cpu", torch.float32, copy=True)
        return full

    def weights_changed(self) -> None:
        """As DeepSpeed's own loading of checkpoints does it."""
        optimizer = self._engine.optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            optimizer._partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def _updated(self) -> list[Tensor]:
        if self._stage == 0:
            return list(self._engine.module.parameters())
        optimizer = self._engine.optimizer
        flat: list[Tensor] = (
            optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups
        )
        return flat


def is_on_meta(model: nn.Module) -> TypeGuard[VideoModel]:
    """Whether a model has no memory yet; only those can be that know how to fill themselves later."""
    return isinstance(model, VideoModel) and any(parameter.is_meta for parameter in model.parameters())


def spread(
    deepspeed: Any, model: VideoModel, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> None:
    """Give a model without memory its initial weights, spread over the ranks as ZeRO-3 has them; one weight at a time is whole.

    `deepspeed.zero.Init` around the building of a model would do so as each of its layers is made, which is before its weights are filled.
    """
    fill = model.filler()
    deepspeed.init_distributed(dist_init_required=False)
    for name, parameter in list(model.named_parameters()):
        folder, _, last = name.rpartition(".")
        weight = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device))
        fill(weight, name)
        model.get_submodule(folder).register_parameter(last, weight)
        deepspeed.zero.Init(module=nn.ParameterList([weight]), config_dict_or_path=config)


class OneOutput:
    """Makes a model that returns a list of tensors return them as one, and takes that apart again.

    ZeRO-3 hooks into the way back at every tensor that a layer returns, and ranks must have as many hooks; they need not have as many samples.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forward, self._shapes = model.forward, list[torch.Size]()
        model.forward = self._joined

    def _joined(self, *inputs: Any) -> Tensor:
        parts = self._forward(*inputs)
        if isinstance(parts, Tensor):
            self._shapes = []
            return parts
        self._shapes = [part.shape for part in parts]
        return torch.cat([part.flatten() for part in parts])

    def apart(self, made: Tensor) -> Any:
        """What the model would have returned, of what it did."""
        if not self._shapes:
            return made
        return [
            part.view(shape)
            for part, shape in zip(
                torch.split(made, [shape.numel() for shape in self._shapes]), self._shapes, strict=True
            )
        ]


def zero_options(settings: TrainSettings, n_weights: int) -> dict[str, Any]:
    """DeepSpeed's section `zero_optimization`; its names count elements, not bytes."""
    # It allocates all of a bucket in each step, 2 GB by default, however few weights there are.
    bucket = min(settings.communication_bucket, n_weights)
    options: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if settings.zero_stage == 3:
        options["stage3_prefetch_bucket_size"] = settings.communication_bucket // 10
    if settings.cpu_offload:
        options["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return options


def _whole(model: nn.Module) -> list[Fragment]:
    return [
        Fragment(name, 0, parameter.numel(), shard, 0)
        for shard, (name, parameter) in enumerate(model.named_parameters())
    ]


def _accepted(norm: float, max_norm: float) -> bool:
    return math.isfinite(norm) and norm <= max_norm


def _finite(norm: float) -> float:
    if not math.isfinite(norm):
        raise NonFiniteGradientError(f"the gradient's norm is {norm}")
    return norm


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
