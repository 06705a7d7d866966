"""Frozen weights and learning rates by patterns of names: against plain AdamW, sharded, resumed and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from cluster.config import validate
from tests.support.drawn import write_dataset
from tests.support.published_models import TEXT_KEYS, write_published
from tests.support.ranks import run_ranks
from tests.support.step_samples import CPU
from training.checkpoints.checkpoint import newest_checkpoint
from training.checkpoints.export import read_export
from training.checkpoints.files import Index
from training.checkpoints.initial_weights import find_initial_weights
from training.checkpoints.published_export import write_published_export
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.diffusers import Diffusers
from training.models.dit import DiT
from training.network import trained_parameters
from training.optimizers import SkippableAdamW, set_lr
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics
from training.weight_patterns import freeze, lr_factors

MODEL = DiT(depth=2, dim=32, heads=2)
FROZEN, SCALES = ("blocks.0.*", "text_in.*"), {"blocks.1.attention.*": 0.1, "patch_out.*": 3.0}


def options(**changes: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "batch": PlanSettings(tokens_per_step=120),
        "lr": 1e-2,
        "warmup_steps": 0,
        "steps": 4,
        "validate_every": 0,
        "previews": {"every": 0},
    } | changes


def test_learning_rates_are_those_of_plain_adamw() -> None:
    """One step with a scheduled rate, against an optimizer of torch with a group per weight."""
    settings = TrainSettings(**options(lr_scale=SCALES, weight_decay=0.1))
    ours, theirs = MODEL.build(4, 8), MODEL.build(4, 8)
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        torch.manual_seed(0)
        freeze(model, FROZEN)
        for _, weight in trained_parameters(model):
            weight.grad = torch.randn_like(weight)
    before = {name: weight.detach().clone() for name, weight in ours.named_parameters()}
    optimizer = SkippableAdamW(ours, settings)
    set_lr(optimizer, 2e-3)
    optimizer.step()
    groups = []
    for name, weight in trained_parameters(theirs):
        factor = 0.1 if name.startswith("blocks.1.attention.") else 3.0 if name.startswith("patch_out.") else 1.0
        decay = 0.0 if weight.ndim < 2 or "table" in name else 0.1
        groups.append({"params": [weight], "lr": 2e-3 * factor, "weight_decay": decay})
    torch.optim.AdamW(groups, betas=settings.betas).step()
    for (name, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
        assert weight.equal(before[name]) == name.startswith(("blocks.0.", "text_in."))


def test_patterns_without_a_weight_are_named() -> None:
    model = MODEL.build(4, 8)
    with pytest.raises(ValueError, match=r"frozen: block\.0\.\* matches no weight that trains; names are such as "):
        freeze(model, ["block.0.*"])
    with pytest.raises(ValueError, match="frozen: no weight is left to train"):
        freeze(MODEL.build(4, 8), ["*"])
    freeze(model, FROZEN)
    with pytest.raises(ValueError, match=r"lr_scale: blocks\.0\.\* matches no weight that trains"):
        lr_factors(model, {"blocks.0.*": 0.5})
    with pytest.raises(ValueError, match=r"matches blocks\.\*, blocks\.1\.\*; a weight has one factor"):
        lr_factors(model, {"blocks.*": 0.5, "blocks.1.*": 0.1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": FROZEN}, "there are none; set init, or remove frozen"),
        ({"frozen": FROZEN, "adapter": {}, "init": "./x"}, "as they are already; remove frozen"),
        ({"lr_scale": SCALES, "optimizer": "muon"}, "lr_scale needs optimizer: adamw"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**options(**changes))


def losses_of(runs: list[dict[str, Any]], manifest: str, folder: str) -> list[list[float]]:
    """Train runs with these settings, each in its folder, and return their losses."""
    for index, changes in enumerate(runs):
        train_loop(TrainSettings(**options(**changes)), manifest, f"{folder}/{index}", 3, CPU)
    return [[record["loss"] for record in read_metrics(f"{folder}/{index}")] for index in range(len(runs))]


@pytest.mark.slow
def test_runs_shard_resume_and_export_them(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 14), (48, 32, 1, 10)], n_val=2)
    base = train_loop(TrainSettings(**options(steps=2)), manifest, str(tmp_path / "base"), 0, CPU).export_uri
    own = {"init": base, "frozen": FROZEN, "lr_scale": SCALES, "ema_decay": 0.5}
    (alone,) = losses_of([own], manifest, f"{tmp_path}/alone")
    losses_of([own | {"steps": 2}], manifest, f"{tmp_path}/parts")
    assert losses_of([own], manifest, f"{tmp_path}/parts") == [alone]
    resumed = read_export(f"{tmp_path}/parts/0/export")[1].state_dict()
    checkpoint = newest_checkpoint(f"{tmp_path}/alone/0")
    assert checkpoint is not None
    index = Index.read(checkpoint.uri)
    with pytest.raises(ValueError, match=r"a run with frozen weights, which are not in it; start from the export of"):
        find_initial_weights(checkpoint.uri)
    names = {fragment.name for layout in index.layouts for fragment in layout.fragments}
    before, after = read_export(base)[1].state_dict(), read_export(f"{tmp_path}/alone/0/export")[1].state_dict()
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.equal(before[name]) == name.startswith(("blocks.0.", "text_in."))
        assert (name in names) != name.startswith(("blocks.0.", "text_in."))
        assert value.equal(resumed[name])
    stages = [own | {"workers": 2, "zero_stage": stage} for stage in range(4)]
    for found in run_ranks(losses_of, 2, stages, manifest, f"{tmp_path}/zero")[0]:
        assert found == pytest.approx(alone, abs=1e-4)
    sharded = read_export(f"{tmp_path}/zero/3/export")[1].state_dict()
    for name, value in after.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_published_models_with_frozen_blocks_are_whole(tmp_path: Path) -> None:
    sizes = {"in_channels": 16, "out_channels": 16, TEXT_KEYS["wan"]: 128}
    folder = write_published(tmp_path / "model", "wan", **sizes)
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=2)
    model = validate(Diffusers, {"name": "diffusers", "path": str(folder)})
    changes = {"model": model, "frozen": ("transformer.blocks.0.*",), "ema_decay": 0.0, "previews": {"every": 2}}
    run = train_loop(TrainSettings(**options(**changes)), manifest, str(tmp_path / "run"), 0, CPU)
    assert "preview_failed" not in str(read_metrics(str(tmp_path / "run")))
    write_published_export(run.export_uri, str(tmp_path / "given"))
    given, base = (
        WanTransformer3DModel.from_pretrained(path, subfolder="transformer").state_dict()
        for path in (tmp_path / "given", folder)
    )
    for name, value in base.items():
        assert given[name].equal(value.bfloat16().float()) == name.startswith("blocks.0."), name
