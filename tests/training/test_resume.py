"""Runs that stop at step 7 of 20 and resume, unchanged or with other workers and another ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.drawn import write_dataset
from tests.support.ranks import run_ranks
from training.checkpoints.export import read_export
from training.checkpoints.model_card import read_card
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow

SETTINGS = TrainSettings(
    model=DiT(depth=1, dim=48, heads=2),
    batch=PlanSettings(tokens_per_step=120),
    lr=2e-3,
    warmup_steps=2,
    skip_grad_norm=50.0,
    validate_every=0,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 14), (48, 32, 1, 10)], n_val=2)


def train(manifest: str, run_uri: str, parts: list[dict[str, Any]]) -> list[float]:
    """Train in parts with changed settings, each from the last checkpoint; return the losses of all steps."""
    for changes in parts:
        train_loop(SETTINGS.model_copy(update=changes), manifest, run_uri, 3, torch.device("cpu"))
    return [record["loss"] for record in read_metrics(run_uri)]


def train_all(manifest: str, runs: list[tuple[str, list[dict[str, Any]]]]) -> list[list[float]]:
    """Train several runs in the same processes."""
    return [train(manifest, run_uri, parts) for run_uri, parts in runs]


def weights_digest(run_uri: str) -> str:
    """Return the digest of the exported weights."""
    return read_card(f"{run_uri}/export").weights


def test_runs_resume_to_the_bit_or_with_equal_losses(manifest: str, tmp_path: Path) -> None:
    def uri(name: str) -> str:
        return str(tmp_path / name)

    stop, end = {"steps": 7}, {"steps": 20}
    one, two = ({"workers": 2, "zero_stage": stage} for stage in (0, 2))
    muon = {"optimizer": "muon"}
    alone, alone_muon = train(manifest, uri("alone"), [end]), train(manifest, uri("alone-muon"), [muon | end])
    assert train(manifest, uri("alone-7"), [stop, end]) == alone
    assert weights_digest(uri("alone-7")) == weights_digest(uri("alone"))
    train(manifest, uri("from-alone"), [stop])
    runs: list[tuple[str, list[dict[str, Any]]]] = [
        (uri("zero0"), [one | end]),
        (uri("zero0-7"), [one | stop, one | end]),
        (uri("muon"), [one | muon | end]),
        (uri("muon-7"), [one | muon | stop, one | muon | end]),
        (uri("zero2"), [two | end]),
        (uri("zero2-7"), [two | stop, two | end]),
        (uri("from-alone"), [two | end]),
        (uri("to-alone"), [two | stop]),
    ]
    zero0, zero0_resumed, on_muon, muon_resumed, zero2, zero2_resumed, from_alone, _ = run_ranks(
        train_all, 2, manifest, runs
    )[0]
    assert zero0_resumed == zero0
    assert muon_resumed == on_muon
    assert zero2_resumed == zero2
    assert alone_muon != alone
    assert on_muon == pytest.approx(alone_muon, abs=1e-4)
    for name in ("zero0", "muon", "zero2"):
        assert weights_digest(uri(f"{name}-7")) == weights_digest(uri(name))
    to_alone = train(manifest, uri("to-alone"), [end])
    for losses in (zero0, zero2, from_alone, to_alone):
        assert len(losses) == 20
        assert losses == pytest.approx(alone, abs=1e-4)
    for averaged in (True, False):
        ours, theirs = (read_export(f"{uri(name)}/export", averaged=averaged)[1] for name in ("to-alone", "alone"))
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
