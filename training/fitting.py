"""The settings of a run, fitted to the memory of its devices before it starts."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import nn

from cluster.telemetry import log
from training.adapters.lora import add_adapter
from training.data.buckets import latent_size, parse_bucket_name
from training.data.dataset import Dataset
from training.memory import MicroBatchSize, Sharding
from training.settings import TrainSettings
from training.weight_patterns import freeze

UNLIMITED_FACTOR = 2
"""Factor from a rank's mean share of a step's tokens to the most that it may get if `max_tokens_per_micro` sets no
limit: ranks share a step evenly by FLOPs, and short samples have fewer FLOPs per token."""


def fit_to_device(settings: TrainSettings, dataset: Dataset, text_dim: int, device: torch.device) -> TrainSettings:
    """Return the settings with the activation checkpointing that a rank's memory needs; every rank calls it.

    On a CPU they are unchanged. Raises `DeviceMemoryError` if no checkpointing makes a step fit.
    """
    if device.type != "cuda":
        return settings
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    fitted = fit_to_memory(settings, dataset, text_dim, ranks, smallest_memory(device))
    if fitted != settings and (ranks == 1 or dist.get_rank() == 0):
        log.info(f"model settings that fit into the memory of the GPU: {fitted.model.changes_from(settings.model)}")
    return fitted


def smallest_memory(device: torch.device) -> int:
    """Return the bytes of memory of the smallest GPU of all ranks; all ranks have to choose the same."""
    memory = torch.tensor(torch.cuda.get_device_properties(device).total_memory, device=device)
    if dist.is_initialized():
        dist.all_reduce(memory, op=dist.ReduceOp.MIN)
    return int(memory)


def fit_to_memory(
    settings: TrainSettings, dataset: Dataset, text_dim: int, ranks: int, device_bytes: int
) -> TrainSettings:
    """Return the settings fitted to `ranks` devices with this memory each, as `fit_to_device` does."""
    with torch.device("meta"):
        model = settings.model.build(dataset.info.channels, text_dim)
    sharding = Sharding(
        2 if settings.precision == "bf16" else 4,
        settings.zero_stage,
        ranks,
        settings.cpu_offload,
        settings.communication_bucket,
    )
    if settings.adapter is not None:
        add_adapter(model, settings.adapter.resolved(settings.model))
    freeze(model, settings.frozen)
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state_bytes = sharding.state_bytes(n_trained, n_frozen(model, sharding.item_bytes))
    size = largest_micro_batch(settings, dataset, ranks // settings.context_parallel)
    return settings.model_copy(
        update={"model": settings.model.fitted(size, sharding.item_bytes, state_bytes, device_bytes)}
    )


def n_frozen(model: nn.Module, item_bytes: int) -> int:
    """Return the number of frozen weights that have the bytes of a model's own, each of `item_bytes` or, if it is
    quantised, of less.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return math.ceil(sum(one.numel() * min(one.itemsize, item_bytes) for one in frozen) / item_bytes)


def largest_micro_batch(settings: TrainSettings, dataset: Dataset, data_ranks: int) -> MicroBatchSize:
    """Return the largest micro-batch of a rank, of `data_ranks` that share a step's samples."""
    info, batch = dataset.info, settings.batch
    means = dataset.table.group_by("bucket").aggregate([("n_text", "mean")])
    cells, tokens_per_cell, text_per_cell = [], [], []
    for name, n_text in zip(means["bucket"].to_pylist(), means["n_text_mean"].to_pylist(), strict=True):
        frames, *area = latent_size(*parse_bucket_name(name), info.time_factor, info.space_factor)
        frames += frames > 1 and settings.conditioning.uses_last_frame
        cells.append(math.prod((frames, *area)))
        tokens_per_cell.append(settings.model.tokens(frames, *area) / cells[-1])
        text_per_cell.append(n_text / cells[-1])
    share = UNLIMITED_FACTOR * batch.tokens_per_step // data_ranks
    limit = batch.max_tokens_per_micro or max(*cells, share)
    return MicroBatchSize(
        math.ceil(limit * max(tokens_per_cell) / settings.context_parallel),
        math.ceil(limit * max(text_per_cell)),
        mixed=len(cells) > 1,
    )
