"""Training loops in one process: they learn, resume to the bit after a kill, stop on signals, and name bad samples."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.drawn import write_dataset
from tests.support.paths import ROOT
from training import run
from training.checkpoints.checkpoint import complete_checkpoints, newest_checkpoint
from training.checkpoints.export import read_export
from training.checkpoints.files import Index
from training.checkpoints.model_card import read_card
from training.data.plan import PlanSettings
from training.engine import TorchEngine
from training.loop import MIN_NORMS, NORM_WINDOW, SpikeDetector, take_step
from training.models.dit import DiT
from training.settings import TrainSettings
from training.stopping import Interrupted, NonFiniteLossError, stop_signals
from training.tracking.metrics import read_metrics
from training.tracking.step_records import TakenStep
from training.validation import Validation

pytestmark = pytest.mark.slow

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
    """Train in this process with changed settings."""
    return run.train(SETTINGS.model_copy(update=changes), manifest, str(out), seed=3, distributed=False)


@pytest.fixture(scope="module")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> run.TrainResult:
    return train(manifest, tmp_path_factory.mktemp("undisturbed"))


def test_a_run_writes_all_its_files(undisturbed: run.TrainResult) -> None:
    assert undisturbed.steps == 12
    assert len(undisturbed.losses) == 12
    assert [step for step, _ in undisturbed.validation] == [6, 12]
    folder = Path(undisturbed.export_uri).parent
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]
    assert list((folder / "tensorboard").iterdir())
    written = json.loads((folder / "settings.json").read_text())
    settings = {key: written[key] for key in written.keys() - {"seed", "data"}}
    assert TrainSettings.model_validate_json(json.dumps(settings)) == SETTINGS
    assert (written["seed"], written["data"]) == (3, read_card(undisturbed.export_uri).data)
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
    # One process on a CPU, whose peak is unknown.
    assert not {"mfu", "hfu", "idle_share", "slowest_rank", "memory_gb"} & records[0].keys()


def test_the_export_needs_nothing_else(undisturbed: run.TrainResult) -> None:
    card, model, null_text = read_export(undisturbed.export_uri)
    assert (card.step, card.seed, card.fps, card.buckets) == (12, 3, 8.0, ("32x32x5", "48x32x1"))
    assert card.source_side == 32, "12 clips are from sources of 32x32 pixels, and 8 images from 48x32"
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


def test_the_same_seed_gives_the_same_losses(undisturbed: run.TrainResult, manifest: str, tmp_path: Path) -> None:
    again = train(manifest, tmp_path)
    assert again.losses == undisturbed.losses
    assert again.validation == undisturbed.validation
    assert read_card(again.export_uri).weights == read_card(undisturbed.export_uri).weights


def test_a_finished_run_is_not_run_again(undisturbed: run.TrainResult, manifest: str) -> None:
    out = Path(undisturbed.export_uri).parent.parent
    before = Path(undisturbed.metrics_uri).stat().st_mtime_ns
    assert train(manifest, out) == undisturbed
    assert Path(undisturbed.metrics_uri).stat().st_mtime_ns == before


def test_a_run_with_more_steps_resumes(undisturbed: run.TrainResult, manifest: str, tmp_path: Path) -> None:
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
    """Start a process that trains."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, manifest, str(out), str(steps)],
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> str:
    """Wait until the process has recorded a step, and return the folder of its run."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for folder in out.glob("run-*"):
            if any(record["step"] >= step for record in read_metrics(str(folder))):
                return str(folder)
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in 300 s")


def test_a_killed_run_resumes_with_the_same_losses(manifest: str, tmp_path: Path) -> None:
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


STUCK_CHECKPOINT = """
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


def test_an_incomplete_checkpoint_is_not_resumed_from(
    undisturbed: run.TrainResult, manifest: str, tmp_path: Path
) -> None:
    process = start(manifest, tmp_path, 12, STUCK_CHECKPOINT + PROGRAM)
    folder = wait_for_step(tmp_path, 11, process)
    process.kill()
    process.communicate()
    assert [one.step for one in complete_checkpoints(folder)] == [4]
    assert list((Path(folder) / "checkpoints" / "step-00000008").iterdir())
    resumed = train(manifest, tmp_path)
    assert resumed.losses == undisturbed.losses
    assert read_card(resumed.export_uri).weights == read_card(undisturbed.export_uri).weights
    assert sorted(path.name for path in (Path(folder) / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]


def test_a_spike_is_skipped_and_recorded(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.loop.MIN_NORMS", 3)
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


def test_a_non_finite_gradient_stops_the_run(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_after_a_checkpoint(number: signal.Signals, manifest: str, tmp_path: Path) -> None:
    process = start(manifest, tmp_path, 100_000)
    folder = wait_for_step(tmp_path, 5, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "the same command resumes" in errors
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.step == read_metrics(folder)[-1]["step"]


@pytest.mark.parametrize("late", [False, True])
def test_a_non_finite_loss_names_the_sample(
    late: bool, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned: list[str] = []

    def poison(state: Any, step: int, inputs: Any, *rest: Any) -> TakenStep:
        if step == 5:
            inputs.micro_batches[0].values[0] = float("nan")
            poisoned.append(inputs.micro_batches[0].uids[0])
        return take_step(state, step, inputs, *rest)

    monkeypatch.setattr("training.loop.take_step", poison)
    monkeypatch.setattr("training.loop.reads_late", lambda device: late)
    with pytest.raises(NonFiniteLossError, match="step 6: the loss is nan, from samples") as caught:
        train(manifest, tmp_path)
    assert poisoned[0] in str(caught.value)
    (folder,) = tmp_path.glob("run-*")
    assert [record["step"] for record in read_metrics(str(folder))] == [1, 2, 3, 4, 5]
    assert [one.step for one in complete_checkpoints(str(folder))] == [4]


def test_micro_batches_do_not_change_the_loss(undisturbed: run.TrainResult, manifest: str, tmp_path: Path) -> None:
    small = train(manifest, tmp_path, batch=PlanSettings(tokens_per_step=200, max_tokens_per_micro=48))
    assert small.losses == pytest.approx(undisturbed.losses, abs=1e-4)


def test_bucketed_steps_resume_to_the_bit(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops after step 7 of 20, inside an epoch; the weight makes `times_seen` of images differ from it."""
    monkeypatch.setattr(DiT, "mixes_shapes", False)
    plan = PlanSettings(tokens_per_step=300, max_tokens_per_micro=60, weights={"*x1": 1.5})
    whole = train(manifest, tmp_path / "whole", steps=20, batch=plan)
    stopped = train(manifest, tmp_path / "stopped", steps=7, batch=plan)
    resumed = train(manifest, tmp_path / "stopped", steps=20, batch=plan)
    assert stopped.losses == whole.losses[:7]
    assert resumed.losses == whole.losses
    assert read_card(resumed.export_uri).weights == read_card(whole.export_uri).weights


def test_several_workers_need_ray(manifest: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers 2 with zero_stage 0 need Ray"):
        train(manifest, tmp_path, workers=2)


def test_records_read_late_are_the_same(
    undisturbed: run.TrainResult, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the record of a step is read after the next one; a stop then comes a step later."""
    monkeypatch.setattr("training.loop.reads_late", lambda device: True)
    late = train(manifest, tmp_path / "whole")
    assert (late.losses, late.validation) == (undisturbed.losses, undisturbed.validation)
    assert read_card(late.export_uri).weights == read_card(undisturbed.export_uri).weights
    folders = [Path(one.export_uri).parent for one in (late, undisturbed)]
    keys = [[list(record) for record in read_metrics(str(folder))] for folder in folders]
    assert keys[0] == keys[1]

    asked: list[int] = []

    @contextlib.contextmanager
    def stop_after_two_steps() -> Iterator[Callable[[], bool]]:
        yield lambda: len(asked) >= 2 or bool(asked.append(0))

    monkeypatch.setattr("training.loop.stop_signals", stop_after_two_steps)
    with pytest.raises(Interrupted, match="stopped after step 4 of 12"):
        train(manifest, tmp_path / "stopped")
    monkeypatch.setattr("training.loop.stop_signals", stop_signals)
    resumed = train(manifest, tmp_path / "stopped")
    assert (resumed.losses, resumed.validation) == (undisturbed.losses, undisturbed.validation)


def test_a_run_overfits_a_tiny_data_set(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", [(32, 32, 1, 4)], n_val=0)
    result = train(
        manifest, tmp_path / "out", steps=300, validate_every=0, checkpoint_every=300, caption_drop=0.0, decay_steps=100
    )
    assert sum(result.losses[-30:]) / 30 < 0.45 * sum(result.losses[:5]) / 5


def detector(factor: float | None, norms: list[float]) -> SpikeDetector:
    """Return a detector after these gradient norms."""
    spikes = SpikeDetector(factor)
    for norm in norms:
        spikes.add(norm)
    return spikes


def test_there_is_no_limit_without_factor_or_enough_norms() -> None:
    assert detector(None, [1.0] * 500).limit() == math.inf
    assert detector(5, [1.0] * (MIN_NORMS - 1)).limit() == math.inf
    assert detector(5, [1.0] * MIN_NORMS).limit() == 5


def test_the_limit_follows_a_new_level_but_not_spikes() -> None:
    spikes = detector(5, [1.0] * NORM_WINDOW)
    for _ in range(NORM_WINDOW // 2 - 1):
        spikes.add(100.0)
    assert spikes.limit() == 5
    spikes.add(100.0)
    spikes.add(100.0)
    assert spikes.limit() == 500


@given(norms=st.lists(st.floats(0, 1e6), max_size=2 * NORM_WINDOW), split=st.integers(0, 2 * NORM_WINDOW))
def test_a_spike_detector_resumes_from_its_norms(norms: list[float], split: int) -> None:
    whole = detector(3, norms)
    resumed = SpikeDetector(3, detector(3, norms[:split]).norms)
    for norm in norms[split:]:
        resumed.add(norm)
    assert resumed.norms == whole.norms
    assert resumed.limit() == whole.limit()
    assert len(whole.norms) <= NORM_WINDOW


class MeasuredLosses:
    """Stands in for validation: its losses are given, by the steps that have been taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
        self.left = list(losses)
        monkeypatch.setattr(Validation, "record", lambda _: {"val_loss": self.take()})

    def take(self) -> float:
        loss = self.left.pop(0)
        if loss < 0:
            raise OSError("the disk is gone")
        return loss


OVERFITTED = [3.0, 2.0, 1.0, 1.5, math.nan, 2.0]
"""Validation losses after steps 2, 4, ... 12."""


def test_the_best_step_is_exported(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MeasuredLosses(monkeypatch, OVERFITTED)
    trained = train(manifest, tmp_path / "whole", validate_every=2)
    card = read_card(trained.export_uri)
    assert (card.step, card.trained_steps, card.val_loss, trained.export_step) == (6, 12, 1.0, 6)
    until_6 = train(manifest, tmp_path / "until-6", steps=6, validate_every=0)
    assert card.weights == read_card(until_6.export_uri).weights
    assert sorted(os.listdir(Path(trained.export_uri).parent / "best")) == ["step-00000004", "step-00000006"]
    # The setting may change afterwards.
    last = train(manifest, tmp_path / "whole", validate_every=2, export="last")
    assert (read_card(last.export_uri).step, last.export_step) == (12, 12)
    assert train(manifest, tmp_path / "whole", validate_every=2) == trained
    assert read_card(trained.export_uri) == card


@pytest.mark.parametrize("failing_at", [8, 10, 12])
def test_a_resumed_run_knows_the_best_step(
    failing_at: int, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MeasuredLosses(monkeypatch, [*OVERFITTED[: failing_at // 2 - 1], -1.0])
    with pytest.raises(OSError, match="disk"):
        train(manifest, tmp_path, validate_every=2)
    (run_folder,) = tmp_path.glob("run-*")
    newest = newest_checkpoint(str(run_folder))
    MeasuredLosses(monkeypatch, OVERFITTED[newest.step // 2 if newest else 0 :])
    card = read_card(train(manifest, tmp_path, validate_every=2).export_uri)
    assert (card.step, card.val_loss) == (6, 1.0)


def test_a_missing_export_of_the_best_step(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    MeasuredLosses(monkeypatch, OVERFITTED)
    run_uri = Path(train(manifest, tmp_path, steps=8, validate_every=2).export_uri).parent
    shutil.rmtree(run_uri / "best")
    card = read_card(train(manifest, tmp_path, validate_every=2).export_uri)
    assert (card.step, card.val_loss) == (12, 2.0)
    assert "the export of the best step is missing" in caplog.text


def test_a_damaged_export_of_the_best_step(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last step is exported in its place; a finished run without its export writes it again."""
    MeasuredLosses(monkeypatch, OVERFITTED)
    trained = train(manifest, tmp_path, validate_every=2)
    best = Path(trained.export_uri).parent / "best" / "step-00000006" / "model.safetensors"
    damaged = bytearray(best.read_bytes())
    damaged[-1] ^= 1
    best.write_bytes(damaged)
    shutil.rmtree(trained.export_uri)
    assert train(manifest, tmp_path, validate_every=2).export_step == 12
    assert "step-00000006: the export of the best step is damaged; the last step is exported" in caplog.text
    read_export(trained.export_uri)


def test_the_validation_loss_is_of_the_averaged_weights(manifest: str, tmp_path: Path) -> None:
    """Measuring it changes nothing: a run without validation has the same losses and weights."""
    measured = train(manifest, tmp_path / "measured", validate_every=3, export="last")
    without = train(manifest, tmp_path / "without", validate_every=0)
    assert measured.losses == without.losses
    assert read_card(measured.export_uri).weights == read_card(without.export_uri).weights
    raw = train(manifest, tmp_path / "raw", validate_every=3, ema_decay=0.0)
    assert raw.losses == measured.losses
    assert raw.validation != measured.validation
