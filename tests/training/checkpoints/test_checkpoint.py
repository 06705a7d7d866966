"""Checkpoints: visible only when complete, written while training continues, pruned, refused by another model."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs as pafs
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from cluster import storage, stores
from training.checkpoints.checkpoint import Checkpoint, Marker, complete_checkpoints, newest_checkpoint
from training.checkpoints.files import Index, Layout
from training.checkpoints.reader import damages_on_this_rank, load_checkpoint, newest_whole_checkpoint
from training.checkpoints.run_folder import move_run
from training.checkpoints.writer import CheckpointError, CheckpointWriter, save_checkpoint
from training.data.footer import DamagedError
from training.ema import Ema
from training.engine import Engine, open_engine
from training.models.dit import DiT
from training.settings import TrainSettings

SETTINGS = TrainSettings(model=DiT(depth=1, dim=32, heads=2), keep_checkpoints=2)


def fresh(seed: int = 0) -> tuple[Engine, Ema]:
    """Return an engine with an untrained model, and its averages."""
    torch.manual_seed(seed)
    engine = open_engine(SETTINGS.model.build(4, 8), SETTINGS, torch.device("cpu"))
    return engine, Ema(engine.weight_shards(), 0.99)


def test_a_checkpoint_restores_weights_and_averages(tmp_path: Path) -> None:
    engine, ema = fresh()
    ema.averages[0].fill_(3.0)
    saved = save_checkpoint(str(tmp_path), 5, engine, ema, SETTINGS)
    assert newest_checkpoint(str(tmp_path)) == saved
    other, other_ema = fresh(seed=1)
    load_checkpoint(saved, other, other_ema)
    assert all(a.equal(b) for a, b in zip(engine.weight_shards(), other.weight_shards(), strict=True))
    assert all(a.equal(b) for a, b in zip(ema.averages, other_ema.averages, strict=True))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    engine, ema = fresh()
    for step in (5, 10, 100):
        save_checkpoint(str(tmp_path), step, engine, ema, SETTINGS)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000100"]


def test_later_checkpoints_give_way_to_the_one_written(tmp_path: Path) -> None:
    """A run that did not resume from them found them damaged; counted as newest, they would push out whole ones."""
    engine, ema = fresh()
    for step in (5, 10, 100, 15):
        save_checkpoint(str(tmp_path), step, engine, ema, SETTINGS)
    assert [one.step for one in complete_checkpoints(str(tmp_path))] == [10, 15]


@pytest.mark.parametrize("failing_file", ["rank-00000", "index", "complete"])
def test_an_incomplete_checkpoint_is_ignored(
    failing_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ema = fresh()
    save_checkpoint(str(tmp_path), 5, engine, ema, SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "atomic_output", full_disk(failing_file))
        with pytest.raises(CheckpointError, match="step 10 could not be written by 1 of 1 workers: disk full"):
            save_checkpoint(str(tmp_path), 10, engine, ema, SETTINGS)
    assert [one.step for one in complete_checkpoints(str(tmp_path))] == [5]
    assert save_checkpoint(str(tmp_path), 10, engine, ema, SETTINGS).step == 10
    assert [one.step for one in complete_checkpoints(str(tmp_path))] == [5, 10]


def full_disk(prefix: str) -> Callable[[str], AbstractContextManager[BinaryIO]]:
    """Return a `storage.atomic_output` that fails for files whose name begins with `prefix`."""
    write = storage.atomic_output

    @contextlib.contextmanager
    def output(uri: str) -> Iterator[BinaryIO]:
        with write(uri) as handle:
            yield handle
            if f"/{prefix}" in uri:
                raise OSError("disk full")

    return output


@contextlib.contextmanager
def held_back(monkeypatch: pytest.MonkeyPatch, prefix: str) -> Iterator[threading.Event]:
    """Yield an event; until it is set, files whose name begins with `prefix` do not become visible."""
    write, release = storage.atomic_output, threading.Event()

    @contextlib.contextmanager
    def output(uri: str) -> Iterator[BinaryIO]:
        with write(uri) as handle:
            yield handle
            if f"/{prefix}" in uri:
                assert release.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "atomic_output", output)
        try:
            yield release
        finally:
            release.set()


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ema = fresh()
    before = [shard.clone() for shard in engine.weight_shards()]
    with (
        held_back(monkeypatch, "rank-") as release,
        contextlib.closing(CheckpointWriter(str(tmp_path), engine, ema, SETTINGS)) as writer,
    ):
        writer.start(5, {"norms": [1.5]})
        for shard in engine.weight_shards():
            shard.fill_(7.0)
        writer.poll()
        assert newest_checkpoint(str(tmp_path)) is None
        release.set()
        saved = writer.wait()
    assert saved == newest_checkpoint(str(tmp_path))
    assert saved is not None
    other, other_ema = fresh(seed=1)
    assert load_checkpoint(saved, other, other_ema) == {"norms": [1.5]}
    assert all(a.equal(b) for a, b in zip(before, other.weight_shards(), strict=True))


@pytest.mark.slow
def test_one_checkpoint_is_written_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ema = fresh()
    with (
        held_back(monkeypatch, "index") as release,
        contextlib.closing(CheckpointWriter(str(tmp_path), engine, ema, SETTINGS)) as writer,
    ):
        writer.start(5, {})
        threading.Timer(0.2, release.set).start()
        writer.start(10, {})
        assert [one.step for one in complete_checkpoints(str(tmp_path))] == [5]
        writer.wait()
    assert [one.step for one in complete_checkpoints(str(tmp_path))] == [5, 10]


def test_an_error_is_raised_at_a_later_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ema = fresh()
    monkeypatch.setattr(storage, "atomic_output", full_disk("rank-"))
    with contextlib.closing(CheckpointWriter(str(tmp_path), engine, ema, SETTINGS)) as writer:
        writer.start(5, {})
        with pytest.raises(CheckpointError, match="disk full"):
            poll_for_10_s(writer)


def poll_for_10_s(writer: CheckpointWriter) -> None:
    """Poll as often as a training loop would."""
    for _ in range(1000):
        writer.poll()
        time.sleep(0.01)


def test_files_are_safetensors(tmp_path: Path) -> None:
    engine, ema = fresh()
    ema.averages[0].fill_(3.0)
    saved = save_checkpoint(str(tmp_path), 5, engine, ema, SETTINGS)
    tensors = load_file(f"{saved.uri}/rank-00000-of-00001.safetensors")
    assert tensors.keys() == {"weight", "exp_avg", "exp_avg_sq", "ema"}
    assert tensors["weight"].equal(torch.cat([shard.flatten() for shard in engine.weight_shards()]))
    assert tensors["ema"].equal(torch.cat([average.flatten() for average in ema.averages]))


def test_other_models_and_versions_are_refused(tmp_path: Path) -> None:
    engine, ema = fresh()
    saved = save_checkpoint(str(tmp_path), 5, engine, ema, SETTINGS)
    deeper = SETTINGS.model_copy(update={"model": DiT(depth=2, dim=32, heads=2)})
    other = open_engine(deeper.model.build(4, 8), deeper, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"step-00000005 is of another model: it holds \d+ weights, and this one has \d+$"
    ):
        load_checkpoint(saved, other, Ema(other.weight_shards(), 0.99))
    index = Index.read(saved.uri)
    renamed = [Layout.from_json(layout.json().replace("blocks.0.", "layers.0.")) for layout in index.layouts]
    write_index(saved, replace(index, layouts=tuple(renamed)).to_bytes())
    with pytest.raises(
        ValueError, match=r"step-00000005 is of another model: parameter blocks\.0\.\S+ from element 0 is not in it"
    ):
        load_checkpoint(saved, engine, ema)
    write_index(saved, b'{"version": 1}')
    with pytest.raises(ValueError, match="a checkpoint of another version of worldloom"):
        load_checkpoint(saved, engine, ema)
    # Markers of version 1 had no digests.
    (Path(saved.uri) / "complete.json").write_text('{"step": 5, "workers": 1, "zero_stage": 0}')
    with pytest.raises(ValueError, match="a checkpoint of another version of worldloom"):
        newest_whole_checkpoint(str(tmp_path), engine)


def write_index(checkpoint: Checkpoint, data: bytes) -> None:
    """Replace the index of a checkpoint, with its digest in the marker."""
    (Path(checkpoint.uri) / "index.json").write_bytes(data)
    (Path(checkpoint.uri) / "complete.json").write_bytes(Marker(checkpoint, storage.digest(data)).to_bytes())


def test_checkpoints_on_an_object_store_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system in memory stands for an object store: neither has folders, and nothing is renamed."""
    memory = pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem()))
    monkeypatch.setattr(stores, "filesystem", lambda scheme, bucket: {"memory": memory}[scheme])
    monkeypatch.setattr(stores, "check_uri", lambda uri: None)
    engine, ema = fresh()
    for step in (5, 10, 15):
        save_checkpoint("memory:///bucket/run", step, engine, ema, SETTINGS)
    move_run("memory:///bucket/run", "memory://bucket/moved")
    assert [one.step for one in complete_checkpoints("memory:///bucket/moved")] == [10, 15]
    other, other_ema = fresh(seed=1)
    newest = newest_checkpoint("memory:///bucket/moved")
    assert newest is not None
    load_checkpoint(newest, other, other_ema)
    assert all(a.equal(b) for a, b in zip(engine.weight_shards(), other.weight_shards(), strict=True))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    engine, ema = fresh()
    saved = save_checkpoint(str(tmp_path), 5, engine, ema, SETTINGS)
    file = Path(saved.uri) / "rank-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="ends 10 bytes early"):
        load_checkpoint(saved, engine, ema)


@pytest.mark.parametrize(
    ("file", "size_bytes", "message"),
    [
        ("complete.json", 0, r"complete\.json: is damaged"),
        ("index.json", 0, r"index\.json: is damaged"),
        ("index.json", 30, r"index\.json: is damaged"),
        (
            "rank-00000-of-00001.safetensors",
            0,
            r"safetensors: has 0 bytes of \d+; the checkpoint of step 10",
        ),
        ("rank-00000-of-00001.safetensors", None, r"safetensors: is missing; the checkpoint of step 10 is not used"),
        ("index.json", None, r"index\.json: is missing; the checkpoint of step 10 is not used"),
    ],
)
def test_training_resumes_from_the_newest_whole_checkpoint(
    file: str, size_bytes: int | None, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut leaves files of a checkpoint empty or short."""
    engine, ema = fresh()
    for step in (5, 10):
        saved = save_checkpoint(str(tmp_path), step, engine, ema, SETTINGS)
    path = Path(saved.uri) / file
    content = path.read_bytes()
    path.unlink()
    if size_bytes is not None:
        path.write_bytes(content[:size_bytes])
    whole = newest_whole_checkpoint(str(tmp_path), engine)
    assert whole is not None
    assert whole.step == 5
    assert re.search(message, caplog.text)
    assert saved.uri in caplog.text
    assert "training resumes from step 5" in caplog.text


@pytest.mark.parametrize(
    ("file", "position", "message"),
    [
        ("rank-00000-of-00001.safetensors", 60, r"safetensors: is damaged: its checksum is [0-9a-f]{8}, and "),
        ("rank-00000-of-00001.safetensors", 4000, r"safetensors: is damaged: its checksum is [0-9a-f]{8}, and "),
        ("rank-00000-of-00001.safetensors", -1, r"safetensors: is damaged: its checksum is [0-9a-f]{8}, and "),
        ("index.json", 20, r"index\.json: is damaged: its digest is not the one in complete\.json"),
        ("complete.json", 9, r"complete\.json: is damaged, and its checkpoint is not used"),
    ],
)
def test_a_flipped_bit_is_found(
    file: str, position: int, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, ema = fresh()
    for step in (5, 10):
        saved = save_checkpoint(str(tmp_path), step, engine, ema, SETTINGS)
    assert newest_whole_checkpoint(str(tmp_path), engine) == saved
    content = bytearray((Path(saved.uri) / file).read_bytes())
    content[position] ^= 1
    (Path(saved.uri) / file).write_bytes(content)
    whole = newest_whole_checkpoint(str(tmp_path), engine)
    assert whole is not None
    assert whole.step == 5
    assert re.search(rf"{re.escape(saved.uri)}/\S*{message}.*training resumes from step 5", caplog.text)


def test_each_rank_checks_a_share_of_the_files(tmp_path: Path) -> None:
    """Two ranks of a checkpoint with three files: what one of them finds, both know."""
    engine, ema = fresh()
    saved = save_checkpoint(str(tmp_path), 5, engine, ema, SETTINGS)
    data = (Path(saved.uri) / "rank-00000-of-00001.safetensors").read_bytes()
    index = Index.read(saved.uri)
    layouts = tuple(replace(index.layouts[0], rank=rank, world_size=3) for rank in range(3))
    for layout in layouts:
        (Path(saved.uri) / layout.file).write_bytes(data)
    write_index(saved, replace(index, layouts=layouts, checksums=index.checksums * 3).to_bytes())
    (Path(saved.uri) / layouts[1].file).write_bytes(data[:-1] + b"\xff")
    engine.world_size = 2
    found = []
    for rank in (0, 1):
        engine.rank = rank
        found.append(damages_on_this_rank(saved, engine))
    assert found[0] == []
    assert "rank-00001-of-00003.safetensors: is damaged" in found[1][0]


@pytest.mark.parametrize("file", ["index.json", "complete.json", "rank-00000-of-00001.safetensors"])
def test_training_does_not_start_over_without_a_checkpoint(file: str, tmp_path: Path) -> None:
    engine, ema = fresh()
    assert newest_whole_checkpoint(str(tmp_path), engine) is None
    saved = save_checkpoint(str(tmp_path), 5, engine, ema, SETTINGS)
    (Path(saved.uri) / file).write_text("")
    with pytest.raises(DamagedError, match=r"no checkpoint is whole: remove .*checkpoints to start over") as raised:
        newest_whole_checkpoint(str(tmp_path), engine)
    assert f"{saved.uri}/{file}: " in str(raised.value)
