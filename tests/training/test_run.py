"""Runs on Ray Train with DeepSpeed have the losses of one process, and lose or change none when workers die."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.drawn import write_dataset
from tests.support.ranks import run_ranks
from training import run
from training.checkpoints.checkpoint import complete_checkpoints, newest_checkpoint
from training.checkpoints.export import read_export
from training.checkpoints.model_card import read_card
from training.checkpoints.run_folder import run_folder
from training.data.plan import PlanSettings
from training.data.shard_reader import ShardReader
from training.loop import train_loop
from training.models.dit import DiT
from training.settings import TrainSettings
from training.stopping import Interrupted
from training.tracking.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

SETTINGS = TrainSettings(
    model=DiT(depth=2, dim=48, heads=2),
    steps=20,
    batch=PlanSettings(tokens_per_step=200),
    lr=2e-3,
    warmup_steps=2,
    workers=2,
    zero_stage=2,
    checkpoint_every=4,
    validate_every=10,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    # 13 training clips of 5 frames, so that steps have odd numbers of samples and epochs do not divide evenly.
    return write_dataset(tmp_path_factory.mktemp("data"), [(32, 32, 5, 15), (48, 32, 1, 9)], n_val=2)


def lose_workers(run_uri: str, left: list[tuple[int, int]]) -> None:
    """Send SIGTERM to the process of rank 1 after its first step, and SIGKILL when there is a checkpoint of step 8.

    The last step and the newest checkpoint after each go to `left`.
    """
    pid_file = Path(run_uri, "pid-1")

    def newest_step() -> int:
        newest = newest_checkpoint(run_uri)
        return newest.step if newest else 0

    for number in (signal.SIGTERM, signal.SIGKILL):
        while not read_metrics(run_uri) or (number == signal.SIGKILL and newest_step() < 8):
            time.sleep(0.05)
        pid = pid_file.read_text()
        os.kill(int(pid), number)
        while pid_file.read_text() in ("", pid):  # until another worker begins in its place
            time.sleep(0.05)
        left.append((read_metrics(run_uri)[-1]["step"], newest_step()))


def train_undisturbed(manifest: str, run_uri: str) -> None:
    """Train on ranks without Ray."""
    train_loop(SETTINGS, manifest, run_uri, 0, torch.device("cpu"))


def test_a_lost_worker_changes_no_loss(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are lost more often than `max_failures`, with a new checkpoint between. At SIGTERM nothing is lost."""
    alone = run.train(
        SETTINGS.model_copy(update={"workers": 1, "zero_stage": 0}),
        manifest,
        str(tmp_path / "alone"),
        distributed=False,
    )
    run_uri = run_folder(SETTINGS, manifest, str(tmp_path / "two"), 0)
    worker = run._worker

    def worker_with_pid(config: dict[str, object]) -> None:
        import ray.train

        rank = ray.train.get_context().get_world_rank()
        Path(run_uri).mkdir(parents=True, exist_ok=True)
        Path(run_uri, f"pid-{rank}").write_text(str(os.getpid()))
        worker(config)

    monkeypatch.setattr(run, "_worker", worker_with_pid)
    left: list[tuple[int, int]] = []
    killer = threading.Thread(target=lose_workers, args=(run_uri, left), daemon=True)
    killer.start()
    lasting = SETTINGS.model_copy(update={"max_failures": 1, "checkpoint_every": 8})
    two = run.train(lasting, manifest, str(tmp_path / "two"), distributed=True)
    killer.join()
    trained, saved = left[0]
    assert saved == trained > 0
    assert left[1][1] >= 8
    assert len(two.losses) == SETTINGS.steps
    assert two.losses == pytest.approx(alone.losses, abs=1e-4)
    assert [loss for _, loss in two.validation] == pytest.approx([loss for _, loss in alone.validation], abs=1e-4)
    assert [record["step"] for record in read_metrics(run_uri)] == list(range(1, SETTINGS.steps + 1))
    assert complete_checkpoints(run_uri)[-1].workers == 2
    # Two ranks without Ray and without a kill end with the same bits.
    undisturbed = str(tmp_path / "undisturbed")
    run_ranks(train_undisturbed, 2, manifest, undisturbed)
    assert tuple(record["loss"] for record in read_metrics(undisturbed)) == two.losses
    assert read_card(f"{undisturbed}/export").weights == read_card(two.export_uri).weights
    for averaged in (True, False):
        ours, theirs = (read_export(result.export_uri, averaged=averaged)[1] for result in (two, alone))
        assert all((a - b).abs().max() < 1e-3 for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_errors_of_workers_reach_the_user(manifest: str, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    target = write_dataset(broken, [(32, 32, 1, 6)], n_val=0)
    (shard,) = (broken / "latents").rglob("*.parquet")
    latent = ShardReader(str(broken)).read(str(shard.relative_to(broken)), 0, 2).latent
    data = bytearray(shard.read_bytes())
    data[data.index(latent.view(torch.int16).numpy().tobytes())] ^= 0xFF
    shard.write_bytes(data)
    settings = SETTINGS.model_copy(update={"max_failures": 0, "validate_every": 0})
    with pytest.raises(RuntimeError, match=r"training failed.*DamagedError.*part-0\.parquet.*sample 32x32x1-"):
        run.train(settings, target, str(tmp_path / "out"), distributed=True)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Let SIGINT raise `KeyboardInterrupt`. A process that a shell started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c_when(ready: Callable[[], bool]) -> threading.Thread:
    """Send SIGINT to this process as soon as something is there, from another thread."""

    def press() -> None:
        while not ready():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_ends_an_elastic_run(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with three workers starts with the two that fit, with the losses of one worker.

    Workers compute with as many threads as this process. At Ctrl-C they write a checkpoint and end, so a run after it
    finds room.
    """
    import ray

    worker, report = run._worker, tmp_path / "report"

    def worker_with_report(config: dict[str, object]) -> None:
        worker(config)
        report.write_text(f"{torch.get_num_threads()} {os.environ['MALLOC_ARENA_MAX']}")

    monkeypatch.setattr(run, "_worker", worker_with_report)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    settings = SETTINGS.model_copy(update={"decay_steps": 0, "checkpoint_every": 2, "validate_every": 0})
    alone = run.train(
        settings.model_copy(update={"steps": 6, "workers": 1, "zero_stage": 0}),
        manifest,
        str(tmp_path / "alone"),
        distributed=False,
    )
    settings = settings.model_copy(update={"steps": 5000, "workers": 3, "min_workers": 1})
    run_uri = run_folder(settings, manifest, str(tmp_path), 0)

    def six_steps_are_done() -> bool:
        checkpoint = newest_checkpoint(run_uri)
        return checkpoint is not None and checkpoint.step >= 6

    thread = press_ctrl_c_when(six_steps_are_done)
    with pytest.raises(Interrupted, match=r"^stopped after step \d+ of 5000") as raised:
        run.train(settings, manifest, str(tmp_path), distributed=True)
    newest = newest_checkpoint(run_uri)
    assert newest is not None
    assert newest.workers in (1, 2)
    assert str(raised.value).startswith(f"stopped after step {newest.step} of")
    assert not Path(run_uri, run.STOP_FILE).exists()
    assert report.read_text() == "3 1"
    thread.join()
    deadline = time.monotonic() + 120
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    records = read_metrics(run_uri)
    time.sleep(1)
    assert len(read_metrics(run_uri)) == len(records) < settings.steps
    assert [record["loss"] for record in records[:6]] == pytest.approx(alone.losses, abs=1e-4)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_ends_the_wait_for_room(manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    # Ray Train's controller answers when it begins another wait.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")

    @ray.remote(num_cpus=1)
    class Other:
        def is_there(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.is_there.remote())
    monkeypatch.setattr(run, "ANSWER_S", 1.0)
    start_s = time.monotonic()
    thread = press_ctrl_c_when(lambda: time.monotonic() > start_s + 4)
    with pytest.raises(KeyboardInterrupt):
        run.train(SETTINGS, manifest, str(tmp_path), distributed=True)
    thread.join()
    assert time.monotonic() - start_s < 15
    ray.kill(other)


def test_more_workers_than_cores_are_refused(manifest: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"workers": 3})
    with pytest.raises(ValueError, match="at least 3 workers need one CPU core each, and the cluster has 2; lower"):
        run.train(settings, manifest, str(tmp_path), distributed=True)
