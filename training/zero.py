"""Helpers of the DeepSpeed engine for ZeRO: sharded initial weights, joined outputs, and its configuration.

Nothing here imports DeepSpeed before the engine has.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.network import InitialiseWeight
from training.settings import TrainSettings


def without_compiled_muon(deepspeed: Any) -> Any:
    """Return the module `deepspeed` after an import of its Muon, which is not used here, without `torch.compile`.

    `deepspeed.initialize` imports it. Its functions are compiled when it is imported, for which torch's compiler is
    loaded: 4 s of CPU in each worker.
    """
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    compile_function, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_function
    return deepspeed


@contextlib.contextmanager
def reducing_during_backward(deepspeed: Any) -> Iterator[None]:
    """Let `deepspeed.initialize` in the block shard by the same class in stage 1 as in stage 2.

    For bf16 weights with fp32 gradients in stage 1 without offload it takes `BF16_Optimizer` (DeepSpeed 0.19.8), which
    reduces gradients only after the backward pass, so that communication does not overlap with computation. The class
    of stage 2 handles this case too: with offload DeepSpeed takes it.
    """
    engine, name = deepspeed.DeepSpeedEngine, "_do_optimizer_sanity_check"
    check = getattr(engine, name)
    zero: str = importlib.import_module("deepspeed.runtime.zero.config").ZERO_OPTIMIZATION

    def wrapper_name(self: Any, optimizer: Any) -> str | None:
        chosen: str | None = check(self, optimizer)
        return zero if self.zero_optimization() else chosen

    setattr(engine, name, wrapper_name)
    try:
        yield
    finally:
        setattr(engine, name, check)


class ShardedStart(NamedTuple):
    """How the weights of a model without memory get their values."""

    initialise_weight: InitialiseWeight
    dtype: torch.dtype
    device: torch.device


def initialise_sharded(deepspeed: Any, model: nn.Module, config: Mapping[str, Any], start: ShardedStart) -> None:
    """Give a model without memory its initial weights, sharded over the ranks as ZeRO-3 needs them; one weight at a
    time is whole.

    Building the model inside `deepspeed.zero.Init` would shard each layer as it is made, before its weights have
    values.
    """
    deepspeed.init_distributed(dist_init_required=False)
    for name, parameter in list(model.named_parameters()):
        module_name, _, weight_name = name.rpartition(".")
        values = torch.empty(parameter.shape, dtype=start.dtype, device=start.device)
        weight = nn.Parameter(values, requires_grad=parameter.requires_grad)
        start.initialise_weight(weight, name)
        model.get_submodule(module_name).register_parameter(weight_name, weight)
        deepspeed.zero.Init(module=nn.ParameterList([weight]), config_dict_or_path=config)


def require_input_gradients(model: nn.Module) -> None:
    """Let the inputs of layers whose weights ZeRO-3 gathers at once require gradients, from now on.

    In the backward pass DeepSpeed frees the weights of a layer when the gradients of its inputs are there; if no input
    requires one, it does so before they are used. Before the first adapter of a frozen model nothing requires any.
    """

    def require(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for value in inputs:
            if torch.is_grad_enabled() and isinstance(value, Tensor) and value.is_floating_point():
                value.requires_grad_()

    for module in model.modules():
        if getattr(module, "_z3_leaf", False):
            module.register_forward_pre_hook(require)


class JoinedOutput:
    """A wrapper that makes a model return its list of output tensors as one tensor, and splits that again.

    ZeRO-3 hooks into the backward pass at every tensor that a layer returns. All ranks must have the same number of
    hooks, but they may have different numbers of samples.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forward, self._shapes = model.forward, list[torch.Size]()
        model.forward = self._joined_forward

    def _joined_forward(self, *inputs: Any) -> Tensor:
        parts = self._forward(*inputs)
        if isinstance(parts, Tensor):
            self._shapes = []
            return parts
        self._shapes = [part.shape for part in parts]
        return torch.cat([part.flatten() for part in parts])

    def split(self, output: Tensor) -> Any:
        """Return what the model's own `forward` returned for this joined output."""
        if not self._shapes:
            return output
        parts = torch.split(output, [shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def deepspeed_config(settings: TrainSettings, n_weights: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a model with `n_weights` weights.

    Gradients are summed in fp32, over ranks and over micro-batches. In bf16 the sum over a ring of 512 ranks would be
    wrong by 2 to 8% of a gradient's norm (`tests/training/test_zero_config.py`).
    """
    return {
        # The loader makes the batches; DeepSpeed only checks that these two agree with each other.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # DeepSpeed reports no norm in stage 0, so `DeepSpeedEngine.step` clips there.
        "gradient_clipping": settings.clip_norm if settings.zero_stage else 0.0,
        "bf16": {"enabled": settings.precision == "bf16"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero_options(settings, n_weights),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def zero_options(settings: TrainSettings, n_weights: int) -> dict[str, Any]:
    """Return DeepSpeed's section `zero_optimization`; its sizes count elements, not bytes."""
    # DeepSpeed allocates a whole bucket in each step, even for a model with fewer weights. It wants an even number.
    bucket = min(settings.communication_bucket, n_weights)
    bucket += bucket % 2
    options: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        # While the backward pass computes the gradients of one bucket, those of the bucket before it are reduced.
        "overlap_comm": True,
    }
    if settings.zero_stage == 3:
        options["stage3_prefetch_bucket_size"] = bucket
    if settings.cpu_offload:
        options["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return options
