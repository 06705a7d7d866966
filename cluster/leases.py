"""Leases on a folder that several commands may write to, on any machine and any store.

A lease is a small file below `leases` in the folder. Its holder rewrites it every 15 s; one that was not rewritten for
two minutes is void, and one whose process is known to be dead is void at once. Ages are differences between times that
the store itself gave to files, so clocks of machines do not matter. Nothing but atomic writes and a listing that shows
finished writes is asked of the store. A command announces itself, lists the others, and holds the lease only if no
other holds it or came with a smaller id (Lamport, 'A new solution of Dijkstra's concurrent programming problem', 1974).

Readers need no lease: tables and shards consist of files that are whole or absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

from cluster import storage
from cluster.config import ConfigError
from cluster.interrupts import interrupt_main_thread
from cluster.telemetry import log

FOLDER = "leases"
SUFFIX = ".lease.json"
HEARTBEAT_S = 15.0
VOID_AFTER_S = 120.0
"""Seconds after which a lease that was not rewritten is void: eight heartbeats, so that a busy store ends no run."""
POLL_S = 0.5

EVERYTHING = "everything"
"""Scope that conflicts with every other."""


class LeaseHeldError(ConfigError):
    """Another command writes to the folder. The message names it."""


class LeaseLostError(RuntimeError):
    """Another command took the lease, since its holder did not write it for too long."""


@dataclass(frozen=True)
class Holder:
    """A command that holds a lease or asks for one. `process` identifies its process on its `host`."""

    id: str
    scope: str
    state: Literal["asking", "holding"]
    command: str
    host: str
    pid: int
    process: str
    since: str

    def conflicts_with(self, other: Holder) -> bool:
        """Return whether the two may not write at the same time."""
        return self.scope == other.scope or EVERYTHING in (self.scope, other.scope)

    @property
    def is_dead(self) -> bool:
        """Whether its process ended: known only on the same host."""
        return self.host == host_identity() and self.process != process_identity(self.pid)


@dataclass(frozen=True)
class _Seen:
    """A lease file in a listing."""

    uri: str
    holder: Holder
    written_ns: int


_held: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("_held", default=())
"""(folder, scope) of each lease that the calling code holds."""


@contextlib.contextmanager
def lease(folder: str, scope: str) -> Iterator[None]:
    """Hold the lease of a scope in a folder for the length of the block; code inside may ask for it again.

    Raises `LeaseHeldError` if another command holds a lease of this scope or of `EVERYTHING`, and `LeaseLostError` if
    this one lost its own, after an interrupt like that of Ctrl-C.
    """
    mine = _held.get()
    if any(held_folder == folder and held_scope in (scope, EVERYTHING) for held_folder, held_scope in mine):
        yield
        return
    held = _Lease(folder, scope)
    held.acquire()
    token = _held.set((*mine, (folder, scope)))
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the latter where a connected Ray handles SIGTERM
        if held.lost:
            raise LeaseLostError(
                f"{folder}: this command did not write its lease for over {VOID_AFTER_S:.0f} s, and another took it; "
                "it has stopped; run it again when the other has ended"
            ) from None
        raise
    finally:
        _held.reset(token)
        held.release()


@dataclass(frozen=True)
class Sighting:
    """A lease in a folder, for those who only look."""

    holder: Holder
    age_s: float
    """Seconds since it was written, by the clocks of the store and of this machine."""
    alive: bool
    """Whether its command may be alive: it wrote its lease lately, and is not known to have ended."""


def look(folder: str) -> list[Sighting]:
    """Return the leases in a folder, oldest first, and remove none."""
    now_ns = time.time_ns()
    seen = sorted(_list(folder), key=lambda item: item.holder.since)
    return [
        Sighting(item.holder, max(0.0, (now_ns - item.written_ns) / 1e9), not _is_void(item, now_ns)) for item in seen
    ]


class _Lease:
    """A lease of this process, and the thread that keeps it."""

    def __init__(self, folder: str, scope: str) -> None:
        self._folder = folder
        self._me = Holder(
            id=secrets.token_hex(8),
            scope=scope,
            state="asking",
            command=_command(),
            host=host_identity(),
            pid=os.getpid(),
            process=process_identity(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._uri = storage.join(folder, FOLDER, f"{self._me.id}{SUFFIX}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.lost = False

    def acquire(self) -> None:
        """Wait until this command holds the lease. Raises `LeaseHeldError`."""
        try:
            self._write()
            while rivals := self._rivals():
                for rival, age_s in rivals:
                    if rival.state == "holding" or rival.id < self._me.id:
                        raise LeaseHeldError(_describe(self._folder, rival, age_s))
                # All of them came with a larger id and give way when they see this one.
                time.sleep(POLL_S)
                self._write()
            self._me = replace(self._me, state="holding")
            self._write()
            # A process that was stopped before this write for so long that its announcement was void finds the other.
            for rival, age_s in self._rivals():
                if rival.state == "holding":
                    raise LeaseHeldError(_describe(self._folder, rival, age_s))
        except BaseException:
            storage.remove(self._uri)
            raise
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        try:
            storage.remove(self._uri)
        except OSError as error:
            log.warning(f"{self._uri}: cannot be removed and is void in {VOID_AFTER_S:.0f} s: {error}")

    def _write(self) -> None:
        storage.write_bytes(self._uri, json.dumps(asdict(self._me), indent=1).encode())

    def _rivals(self) -> list[tuple[Holder, float]]:
        """Return the others whose leases conflict with this one, with the seconds since each was written.

        Void leases are removed.
        """
        seen = _list(self._folder)
        now_ns = max((item.written_ns for item in seen if item.uri == self._uri), default=0)
        rivals = []
        for item in seen:
            if item.uri == self._uri or not item.holder.conflicts_with(self._me):
                continue
            if _is_void(item, now_ns):
                log.warning(
                    f"{item.holder.command} on {_host_name(item.holder)} (process {item.holder.pid}) ended without "
                    "its last word; its lease is taken over"
                )
                storage.remove(item.uri)
            else:
                rivals.append((item.holder, (now_ns - item.written_ns) / 1e9))
        return sorted(rivals, key=lambda rival: rival[0].id)

    def _keep(self) -> None:
        """Rewrite the lease until it is released. If another took it, interrupt the main thread."""
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if storage.exists(self._uri):
                    self._write()
                    # A process that was stopped for long right before this write has put back a lease that was taken.
                    if not any(rival.state == "holding" for rival, _ in self._rivals()):
                        continue
            except (OSError, ValueError) as error:
                log.warning(f"{self._uri}: cannot be written now, tried again in {HEARTBEAT_S:.0f} s: {error}")
                continue
            self.lost = True
            interrupt_main_thread()
            return


def _list(folder: str) -> list[_Seen]:
    """Return the leases in a folder; one that vanishes while they are read is left out."""
    seen = []
    for entry in storage.list_files(storage.join(folder, FOLDER), SUFFIX):
        try:
            data = storage.read_bytes(entry.uri)
        except FileNotFoundError:
            continue
        seen.append(_Seen(entry.uri, _parse(entry.uri, data), int(entry.version)))
    return seen


def _parse(uri: str, data: bytes) -> Holder:
    """Return the holder of a lease; one that another version wrote counts as held, until it is void by its age."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        name = uri.rpartition("/")[2].removesuffix(SUFFIX)
        return Holder(name, EVERYTHING, "holding", "a command of another version", "", 0, "", "")


def _is_void(item: _Seen, now_ns: int) -> bool:
    return item.holder.is_dead or now_ns - item.written_ns > VOID_AFTER_S * 1e9


def _describe(folder: str, holder: Holder, age_s: float) -> str:
    return (
        f"{folder}: `{holder.command}` on {_host_name(holder)} (process {holder.pid}, since {holder.since}, last sign "
        f"of life {max(0.0, age_s):.0f} s ago) is writing here; wait until it ends, or stop it; if that machine is "
        f"gone, its lease ends {VOID_AFTER_S:.0f} s after its last sign of life"
    )


def _host_name(holder: Holder) -> str:
    return holder.host.partition("/")[0] or "another machine"


def _command() -> str:
    """Return the program and, for `worldloom`, its command, without arguments, which may hold secrets."""
    program = Path(sys.argv[0] or "python").name
    return f"worldloom {sys.argv[1]}" if program in ("worldloom", "cli.py") and len(sys.argv) > 1 else program


@cache
def host_identity() -> str:
    """Return the name of this machine, with its boot and its namespace of processes where the system tells them."""
    boot = _read_system_file("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return "/".join([socket.gethostname(), boot, namespace])


def process_identity(pid: int) -> str:
    """Return what tells a process of this machine from a later one of the same number; empty if there is none.

    It is the time at which the process started (proc(5), field 22 of `stat`), or else only that it exists.
    """
    stat = _read_system_file(f"/proc/{pid}/stat")
    if stat:
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state == "Z" else fields[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "exists" if not Path("/proc/self/stat").exists() else ""


def _read_system_file(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
