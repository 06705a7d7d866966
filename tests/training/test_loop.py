"""Whole runs in one process: they learn, resume bit for bit after a kill, stop on signals, and name bad samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.drawn import write_dataset
from tests.support.paths import ROOT
from training import run
from training.checkpoints.checkpoint import newest_checkpoint, complete_checkpoints
from training.checkpoints.export import read_export
from training.checkpoints.model_card import read_card
from training.checkpoints.files import Index
from training.data.plan import PlanSettings
from training.engine import TorchEngine
from training.loop import take_step
from training.models.dit import DiT
from training.settings import TrainSettings
from training.stopping import NonFiniteLossError
from training.tracking.metrics import read_metrics

SETTINGS = TrainSettings(
    model=DiT(depth=2, dim=48, heads=2),
    steps=12,
    batch=PlanSettings(tokens_per_step=200),
    lr=2e-3,
    warmup_steps=2,
    checkpoint_every=4,
    validate_every=6,
    log_every=4,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 14), (48, 32, 1, 10)], n_val=2)


def train(manifest: str, out: Path, **changes: Any) -> run.TrainResult:
    return run.train(SETTINGS.model_copy(update=changes), manifest, str(out), seed=3, distributed=False)


@pytest.fixture(scope="module")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> run.TrainResult:
    return train(manifest, tmp_path_factory.mktemp("undisturbed"))


def test_a_run_leaves_all_that_it_promises(undisturbed: run.TrainResult) -> None:
    assert undisturbed.steps == 12
    assert len(undisturbed.losses) == 12
    assert [step for step, _ in undisturbed.validation] == [6, 12]
    folder = Path(undisturbed.export_uri).parent
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]
    assert Path(undisturbed.curve_uri).read_text().startswith("<svg")
    assert list((folder / "tensorboard").iterdir())
    told = json.loads((folder / "settings.json").read_text())
    assert (
        TrainSettings.model_validate_json(json.dumps({key: told[key] for key in told.keys() - {"seed", "data"}}))
        == SETTINGS
    )
    assert (told["seed"], told["data"]) == (3, read_card(undisturbed.export_uri).data)
    records = [json.loads(line) for line in Path(undisturbed.metrics_uri).read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert sum(name.startswith("loss_time/") for name in records[0]) >= 1
    assert {name for record in records for name in record if name.startswith(("loss_bucket/", "loss_kind/"))} == {
        "loss_bucket/32px_5f",
        "loss_bucket/32px_1f",
        "loss_kind/image",
        "loss_kind/video",
    }
    assert {name.partition("_bucket")[0] for name in records[5] if "bucket" in name} == {"loss", "val_loss"}
    assert {
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "samples",
        "epoch",
        "tokens_per_s",
        "data_wait_s",
        "step_s",
    } <= records[0].keys()
    assert {"tflops", "host_memory_gb"} <= records[0].keys()
    assert not {"mfu", "hfu", "idle_share", "slowest_rank", "memory_gb"} & records[0].keys(), (
        "one process on a CPU, whose peak nobody knows"
    )


def test_the_export_stands_alone(undisturbed: run.TrainResult) -> None:
    card, model, null_text = read_export(undisturbed.export_uri)
    assert (card.step, card.seed, card.fps, card.buckets) == (12, 3, 8.0, ("32x32x5", "48x32x1"))
    assert card.source_side == 32, "of 12 clips cut out of 32x32 pixels, and 8 stills of 48x32"
    assert null_text.shape == (1, 128)
    raw = read_export(undisturbed.export_uri, averaged=False)[1]
    assert any(not a.equal(b) for a, b in zip(model.parameters(), raw.parameters(), strict=True))
    weights = Path(undisturbed.export_uri) / "model.safetensors"
    assert read_card(undisturbed.export_uri).weights == card.weights
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    (copy := weights.parent.parent / "damaged").mkdir()
    (copy / "model.json").write_bytes((weights.parent / "model.json").read_bytes())
    (copy / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file"):
        read_export(str(copy))


def test_same_seed_same_losses(undisturbed: run.TrainResult, manifest: str, tmp_path: Path) -> None:
    again = train(manifest, tmp_path)
    assert again.losses == undisturbed.losses
    assert again.validation == undisturbed.validation
    assert read_card(again.export_uri).weights == read_card(undisturbed.export_uri).weights


def test_a_finished_run_is_returned_as_it_is(undisturbed: run.TrainResult, manifest: str) -> None:
    out = Path(undisturbed.export_uri).parent.parent
    before = Path(undisturbed.metrics_uri).stat().st_mtime_ns
    assert train(manifest, out) == undisturbed
    assert Path(undisturbed.metrics_uri).stat().st_mtime_ns == before


def test_a_longer_run_goes_on(undisturbed: run.TrainResult, manifest: str, tmp_path: Path) -> None:
    first = train(manifest, tmp_path, steps=6)
    whole = train(manifest, tmp_path)
    assert first.losses == whole.losses[:6]
    assert whole.losses == undisturbed.losses


PROGRAM = """
import sys, torch
from tests.training import test_loop
torch.set_num_threads(1)
test_loop.train(sys.argv[1], test_loop.Path(sys.argv[2]), steps=int(sys.argv[3]), checkpoint_every=4)
"""


def start(manifest: str, out: Path, steps: int, program: str = PROGRAM) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, manifest, str(out), str(steps)],
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for folder in out.glob("run-*"):
            if any(record["step"] >= step for record in read_metrics(str(folder))):
                return str(folder)
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in 60 s")


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on_with_the_same_losses(manifest: str, tmp_path: Path) -> None:
    for step in (6, 17):
        process = start(manifest, tmp_path / "killed", 30)
        wait_for_step(tmp_path / "killed", step, process)
        process.kill()
        process.communicate()
    resumed = train(manifest, tmp_path / "killed", steps=30)
    whole = train(manifest, tmp_path / "whole", steps=30)
    assert resumed.losses == whole.losses
    assert resumed.validation == whole.validation
    assert read_card(resumed.export_uri).weights == read_card(whole.export_uri).weights
    assert [record["step"] for record in read_metrics(str(Path(resumed.export_uri).parent))] == list(range(1, 31))


STUCK = """
import contextlib, time
from cluster import storage
write = storage.atomic_output

@contextlib.contextmanager
def output(uri):
    with write(uri) as handle:
        yield handle
        if "step-00000008/rank-" in uri:
            time.sleep(1000)

storage.atomic_output = output
"""


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(
    undisturbed: run.TrainResult, manifest: str, tmp_path: Path
) -> None:
    process = start(manifest, tmp_path, 12, STUCK + PROGRAM)
    folder = wait_for_step(tmp_path, 11, process)
    process.kill()
    process.communicate()
    assert [one.step for one in complete_checkpoints(folder)] == [4]
    assert list((Path(folder) / "checkpoints" / "step-00000008").iterdir())
    resumed = train(manifest, tmp_path)
    assert resumed.losses == undisturbed.losses
    assert read_card(resumed.export_uri).weights == read_card(undisturbed.export_uri).weights
    assert sorted(path.name for path in (Path(folder) / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]


def test_a_step_with_a_spike_is_skipped_and_recorded(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.spikes.MIN_NORMS", 3)
    backward = TorchEngine.backward
    spikes = iter([1.0] * 5 + [1e6] + [1.0] * 20)
    monkeypatch.setattr(TorchEngine, "backward", lambda engine, loss, last: backward(engine, loss * next(spikes), last))
    result = train(manifest, tmp_path, skip_grad_norm=20.0, validate_every=0)
    records = read_metrics(str(Path(result.export_uri).parent))
    assert [record["step"] for record in records if record["skipped"]] == [6]
    newest = newest_checkpoint(str(Path(result.export_uri).parent))
    assert newest is not None
    index = Index.read(newest.uri)
    assert index.updates == 11
    assert index.state == {"norms": [record["grad_norm"] for record in records]}


def test_a_gradient_that_is_no_number_stops_the_run(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = TorchEngine.backward
    factors = iter([1.0] * 5 + [float("inf")])
    monkeypatch.setattr(
        TorchEngine, "backward", lambda engine, loss, last: backward(engine, loss * next(factors), last)
    )
    with pytest.raises(
        NonFiniteLossError,
        match=r"step 6: the gradient's norm is (nan|inf), from samples \d+x\d+x\d+-\d+.*nothing was updated",
    ):
        train(manifest, tmp_path)
    (folder,) = tmp_path.glob("run-*")
    assert [one.step for one in complete_checkpoints(str(folder))] == [4]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_writes_a_checkpoint_first(number: signal.Signals, manifest: str, tmp_path: Path) -> None:
    process = start(manifest, tmp_path, 100_000)
    folder = wait_for_step(tmp_path, 5, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the same command resumes" in errors
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.step == read_metrics(folder)[-1]["step"]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_sample(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned: list[str] = []

    def poison(run: Any, step: int, batches: Any, *rest: Any) -> Record:
        if step == 5:
            batches[0].latents[0][0, 0, 0, 0] = float("nan")
            poisoned.append(batches[0].uids[0])
        return take_step(run, step, batches, *rest)

    monkeypatch.setattr("training.loop.take_step", poison)
    with pytest.raises(NonFiniteLossError, match="step 6: the loss is nan, from samples") as caught:
        train(manifest, tmp_path)
    assert poisoned[0] in str(caught.value)
    (folder,) = tmp_path.glob("run-*")
    assert [record["step"] for record in read_metrics(str(folder))] == [1, 2, 3, 4, 5]
    assert [one.step for one in complete_checkpoints(str(folder))] == [4]


def test_micro_batches_and_their_number_do_not_change_the_loss(
    undisturbed: run.TrainResult, manifest: str, tmp_path: Path
) -> None:
    small = train(manifest, tmp_path, batch=PlanSettings(tokens_per_step=200, max_tokens_per_micro=48))
    assert small.losses == pytest.approx(undisturbed.losses, abs=1e-4)


def test_slots_of_several_buckets_a_step_resume_bit_for_bit_and_dealing_by_times_changes_no_sample(
    manifest: str, tmp_path: Path
) -> None:
    """Stopped after step 7 of 20, inside an epoch; the weight makes passes of images differ from epochs."""
    plan = PlanSettings(tokens_per_step=300, max_tokens_per_micro=60, policy="bucketed", weights={"*x1": 1.5})
    whole = train(manifest, tmp_path / "whole", steps=20, batch=plan)
    stopped = train(manifest, tmp_path / "stopped", steps=7, batch=plan)
    resumed = train(manifest, tmp_path / "stopped", steps=20, batch=plan)
    assert stopped.losses == whole.losses[:7]
    assert resumed.losses == whole.losses
    assert read_card(resumed.export_uri).weights == read_card(whole.export_uri).weights
    timed = train(manifest, tmp_path / "timed", steps=20, batch=plan.model_copy(update={"measured_costs": True}))
    assert timed.losses == pytest.approx(whole.losses, abs=1e-4)


def test_several_workers_need_ray(manifest: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers 2 with zero_stage 0 need Ray"):
        train(manifest, tmp_path, workers=2)


@pytest.mark.slow
def test_it_overfits_a_tiny_data_set(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", [(32, 32, 1, 4)], n_val=0)
    result = train(
        manifest, tmp_path / "out", steps=300, validate_every=0, checkpoint_every=300, caption_drop=0.0, decay_steps=100
    )
    assert sum(result.losses[-30:]) / 30 < 0.45 * sum(result.losses[:5]) / 5
