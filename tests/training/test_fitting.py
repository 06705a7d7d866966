"""Settings fitted to a device's memory: the largest micro-batch of a data set, and the checkpointing that it needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pyarrow as pa
import pytest
import torch

from training import fitting
from training.conditioning import ConditioningRates
from training.data.dataset import Dataset
from training.data.plan import PlanSettings
from training.fitting import fit_to_device, fit_to_memory, largest_micro_batch
from training.memory import GIB, DeviceMemoryError, MicroBatchSize
from training.models.dit import DiT
from training.settings import TrainSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def dataset(**n_text: float) -> Dataset:
    """Return a data set with a sample of each bucket, by name without dashes and with these mean text lengths."""
    table = pa.table({"bucket": [name[1:] for name in n_text], "n_text": list(n_text.values())})
    return cast(Dataset, SimpleNamespace(table=table, info=SimpleNamespace(channels=16, time_factor=4, space_factor=8)))


IMAGES_AND_CLIPS = dataset(_256x256x1=100.0, _512x512x17=150.0)


def settings(model: DiT | None = None, **batch: int) -> TrainSettings:
    """Return settings in bf16 under ZeRO-2, which never condition on a last frame."""
    return TrainSettings(
        model=model or DiT(preset="XL"),
        batch=PlanSettings(**batch),
        precision="bf16",
        zero_stage=2,
        conditioning=ConditioningRates(none=1.0, first=0.0, last=0.0, both=0.0),
    )


def test_the_limit_of_tokens_sets_the_largest_micro_batch() -> None:
    size = largest_micro_batch(settings(max_tokens_per_micro=65_536), IMAGES_AND_CLIPS, data_ranks=8)
    # Four latent cells a token; images have 100 text tokens for each of 1,024 cells.
    assert size == MicroBatchSize(16_384, 6_400, mixed=True)


def test_without_a_limit_a_rank_may_get_twice_its_share() -> None:
    shared = largest_micro_batch(settings(tokens_per_step=1 << 19), IMAGES_AND_CLIPS, data_ranks=8)
    assert shared.tokens == 2 * (1 << 19) // 8 // 4
    # A sample is never divided.
    largest = largest_micro_batch(settings(tokens_per_step=1 << 10), dataset(_512x512x17=150.0), data_ranks=8)
    assert largest == MicroBatchSize(5 * 32 * 32, 150, mixed=False)


@pytest.mark.slow
def test_checkpointing_follows_memory_and_ranks() -> None:
    def fitted(gpu_gib: float, ranks: int = 8, model: DiT | None = None) -> object:
        whole = settings(model, max_tokens_per_micro=65_536)
        return fit_to_memory(whole, IMAGES_AND_CLIPS, 64, ranks, round(gpu_gib * GIB)).model.checkpointing  # type: ignore[attr-defined]

    assert [fitted(gib) for gib in (80, 32, 20)] == ["none", 3, "blocks"]
    assert fitted(40) != fitted(40, ranks=1)
    assert fitted(80, model=DiT(preset="XL", checkpointing=3)) == 3
    with pytest.raises(DeviceMemoryError, match="of 16384 tokens needs"):
        fitted(4)


def test_only_gpus_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = settings(max_tokens_per_micro=65_536)
    assert fit_to_device(whole, IMAGES_AND_CLIPS, 64, CPU) == whole
    monkeypatch.setattr(fitting, "smallest_memory", lambda device: 80 * GIB)
    fitted = fit_to_device(whole, IMAGES_AND_CLIPS, 64, GPU)
    assert fitted.model.changes_from(whole.model) == {"checkpointing": "none"}
