"""Leases: one writer at a time, whatever dies, sleeps or has a wrong clock, on disks and on stores without rename."""

from __future__ import annotations

import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster import leases, storage
from cluster.leases import EVERYTHING, Holder, LeaseHeldError, LeaseLostError, lease

ELSEWHERE = Holder("0" * 16, "tables", "holding", "worldloom run", "elsewhere/1/2", 7, "1", "2026-01-01T00:00:00+00:00")
"""A command on another machine."""


def in_another_command(function: Callable[[], None]) -> list[BaseException]:
    """Run a function as code that holds no lease of this thread; return its error, if any."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # handed to the test
            errors.append(error)

    thread = threading.Thread(target=contextvars.Context().run, args=(run,))
    thread.start()
    thread.join()
    return errors


def holders(folder: str) -> list[Holder]:
    """Return who holds or asks for a lease in a folder."""
    return [Holder(**json.loads(path.read_bytes())) for path in Path(folder, leases.FOLDER).iterdir()]


def take(folder: str, scope: str) -> None:
    with lease(folder, scope):
        pass


def write_holder(folder: str, **changes: object) -> Path:
    """Write the lease of a command on another machine."""
    holder = Holder(
        "0" * 16, "tables", "holding", "worldloom run", "elsewhere/1/2", 7, "1", "2026-01-01T00:00:00+00:00"
    )
    holder = replace(holder, **changes)  # type: ignore[arg-type]
    path = Path(folder, leases.FOLDER, f"{holder.id}{leases.SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))
    return path


def test_second_command_is_told_who_holds_it(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with lease(folder, "tables"):
        (error,) = in_another_command(lambda: take(folder, "tables"))
        assert isinstance(error, LeaseHeldError)
        assert f"(process {os.getpid()}" in str(error)
        assert str(error).startswith(f"{folder}: ")
        assert [holder.scope for holder in holders(folder)] == ["tables"]
    assert holders(folder) == []
    assert in_another_command(lambda: take(folder, "tables")) == []


@pytest.mark.parametrize(
    ("held", "asked", "conflict"),
    [
        ("tables", "run-1", False),
        ("run-1", "run-2", False),
        ("run-1", "run-1", True),
        ("run-1", EVERYTHING, True),
        (EVERYTHING, "tables", True),
    ],
)
def test_scopes_conflict(tmp_path: Path, held: str, asked: str, conflict: bool) -> None:
    with lease(str(tmp_path), held):
        assert bool(in_another_command(lambda: take(str(tmp_path), asked))) == conflict


def test_code_inside_may_ask_again(tmp_path: Path) -> None:
    with lease(str(tmp_path), EVERYTHING), lease(str(tmp_path), "tables"):
        assert len(holders(str(tmp_path))) == 1


def test_live_lease_of_another_machine_is_respected(tmp_path: Path) -> None:
    write_holder(str(tmp_path))
    with pytest.raises(LeaseHeldError, match="`worldloom run` on elsewhere"):
        take(str(tmp_path), "tables")
    assert len(list((tmp_path / leases.FOLDER).iterdir())) == 1, "who is refused leaves nothing behind"


@pytest.mark.parametrize(("age_s", "void"), [(leases.VOID_AFTER_S - 20, False), (leases.VOID_AFTER_S + 5, True)])
def test_silent_lease_is_taken_over(tmp_path: Path, age_s: float, void: bool) -> None:
    path = write_holder(str(tmp_path))
    os.utime(path, (time.time() - age_s,) * 2)
    if void:
        take(str(tmp_path), "tables")
        assert not path.exists()
    else:
        with pytest.raises(LeaseHeldError):
            take(str(tmp_path), "tables")


def test_lease_of_a_dead_process_is_void_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = leases.process_identity(child.pid)
    assert process
    write_holder(str(tmp_path), host=leases.host_identity(), pid=child.pid, process=process)
    with pytest.raises(LeaseHeldError):
        take(str(tmp_path), "tables")
    child.communicate(b"\n")
    take(str(tmp_path), "tables")


def test_a_later_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    write_holder(str(tmp_path), host=leases.host_identity(), pid=os.getpid(), process="1")
    take(str(tmp_path), "tables")


def test_lease_of_another_version_is_held_until_void(tmp_path: Path) -> None:
    path = write_holder(str(tmp_path))
    path.write_text("{}")
    with pytest.raises(LeaseHeldError, match="another version"):
        take(str(tmp_path), "run-1")
    os.utime(path, (time.time() - leases.VOID_AFTER_S - 5,) * 2)
    take(str(tmp_path), "run-1")


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def _command_signals(request: pytest.FixtureRequest) -> Iterator[None]:
    """Handle signals as the command line does, in a process that a shell started in the foreground or background."""
    handlers = {signal.SIGINT: request.param, signal.SIGTERM: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_command_signals")
def test_who_lost_its_lease_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)

    def work() -> None:
        with lease(str(tmp_path), "tables"):
            (mine,) = (tmp_path / leases.FOLDER).glob(f"*{leases.SUFFIX}")
            for _ in range(400):
                # A heartbeat that had begun before may have written it again.
                mine.unlink(missing_ok=True)
                time.sleep(0.05)

    with pytest.raises(LeaseLostError, match="run it again"):
        work()


@pytest.mark.usefixtures("_command_signals")
def test_a_lease_that_was_put_back_beside_its_heir_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped between the look for its lease and the next write of it puts back what was taken."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)

    def work() -> None:
        with lease(str(tmp_path), "tables"):
            write_holder(str(tmp_path))
            time.sleep(20)

    with pytest.raises(LeaseLostError, match="run it again"):
        work()


def test_heartbeats_keep_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)
    with lease(str(tmp_path), "tables"):
        (mine,) = (tmp_path / leases.FOLDER).iterdir()
        before = mine.stat().st_mtime_ns
        deadline = time.monotonic() + 20
        while mine.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert mine.stat().st_mtime_ns > before


class Store:
    """An object store in memory: whole objects, no rename, and a clock of its own."""

    def __init__(self, clock_error_s: float) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self._error_ns = int(clock_error_s * 1e9)
        self.slept_ns = 0

    def write_bytes(self, uri: str, data: bytes) -> None:
        self.objects[uri] = (data, time.time_ns() + self._error_ns + self.slept_ns)

    def read_bytes(self, uri: str) -> bytes:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        return self.objects[uri][0]

    def exists(self, uri: str) -> bool:
        return uri in self.objects

    def remove(self, uri: str) -> None:
        self.objects.pop(uri, None)

    def list_files(self, uri: str, suffix: str = "") -> list[storage.Entry]:
        found = [item for item in sorted(self.objects.items()) if item[0].startswith(uri) and item[0].endswith(suffix)]
        return [storage.Entry(name, len(data), str(written_ns)) for name, (data, written_ns) in found]


@pytest.fixture(params=[-600.0, 0.0, 600.0])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store(request.param)
    for name in ("write_bytes", "read_bytes", "exists", "remove", "list_files"):
        monkeypatch.setattr(storage, name, getattr(made, name))
    return made


def test_clocks_of_machines_do_not_matter(store: Store) -> None:
    folder = "s3://bucket/out"
    uri = f"{folder}/{leases.FOLDER}/{'0' * 16}{leases.SUFFIX}"
    store.write_bytes(uri, json.dumps(asdict(ELSEWHERE)).encode())
    with pytest.raises(LeaseHeldError):
        take(folder, "tables")
    store.slept_ns = int((leases.VOID_AFTER_S + 1) * 1e9)
    take(folder, "tables")
    assert store.objects == {}


def test_of_many_commands_one_works_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL_S", 0.001)
    inside, most, worked = [0], [0], [0]

    def contend() -> None:
        for _ in range(20):
            try:
                with lease("s3://bucket/out", "tables"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.0005)
                    worked[0] += 1
                    inside[0] -= 1
            except LeaseHeldError:
                time.sleep(0.0002)

    threads = [threading.Thread(target=contextvars.Context().run, args=(contend,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert worked[0] > 0
