"""The function that worker processes call first, and the size of the cluster."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster.session import PACKAGES, _protect_token, _remove_folder, worker_setup
from cluster.telemetry import LOG_VARIABLE
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

WORKER = """
import json, os, pickle, sys
setup = pickle.loads(sys.stdin.buffer.read())
setup()
sys.path.insert(0, os.getcwd())
import training, mine
print(json.dumps([sys.stdin.read(), os.readlink("/proc/self/fd/0"), training.__file__, mine.__file__, sys.path[1:]]))
"""


def test_workers_have_no_terminal_and_our_packages(tmp_path: Path) -> None:
    """A folder `training` in the current directory, which Ray puts first on the path, hides nothing."""
    for name in ("training", "pipelines", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    ended = subprocess.run(
        [sys.executable, "-P", "-c", WORKER],
        input=cloudpickle.dumps(worker_setup(str(ROOT))),
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    read, stdin, training, mine, path = json.loads(ended.stdout)
    assert (read, stdin) == ("", os.devnull)
    assert training == str(ROOT / "training" / "__init__.py")
    assert mine == str(tmp_path / "mine" / "__init__.py")
    assert str(ROOT) not in path[:1]


def test_workers_log_as_the_command(tmp_path: Path) -> None:
    logs = "import sys, pickle; pickle.loads(sys.stdin.buffer.read())(); import logging; logging.error('gone')"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", logs],
        input=cloudpickle.dumps(worker_setup(str(ROOT))),
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, LOG_VARIABLE: "json"},
    )
    line = json.loads(ended.stderr)
    assert (line["level"], line["message"]) == ("ERROR", "gone")


def test_a_worker_may_lack_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = worker_setup(str(tmp_path))
    monkeypatch.setattr("cluster.session.PACKAGES", (*PACKAGES, "no_such_package"))
    stdin, path = os.dup(0), list(sys.path)
    try:
        setup()
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
    assert sys.path == path


def test_ray_workers_are_set_up(ray_session: None) -> None:
    import ray

    from cluster.session import cluster_size

    assert ray.get(ray.remote(lambda: os.readlink("/proc/self/fd/0")).remote()) == os.devnull
    # By default Ray repeats tasks that lack memory for ever.
    assert os.environ["RAY_task_oom_retries"] == "3"  # noqa: SIM112
    size = cluster_size()
    assert (size.cpus, size.may_grow) == (2, False)
    listening = set(listening_addresses(ray.get_runtime_context().get_session_name()))
    assert {address[-8:] for address in listening} == {"0100007F"}, "a local Ray listens on 127.0.0.1 alone"
    token = Path.home() / ".ray" / "auth_token"
    assert (mode_of(token), mode_of(token.parent)) == (0o600, 0o700)


def mode_of(path: Path) -> int:
    """Return the rights of a file or folder."""
    return path.stat().st_mode & 0o777


def listening_addresses(session: str) -> Iterator[str]:
    """Yield the address of each port on which a process of a Ray session listens, as /proc/net/tcp writes it."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if session.encode() in (process / "cmdline").read_bytes() or process.name == str(os.getpid()):
                inodes |= {os.readlink(handle) for handle in (process / "fd").iterdir()}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                yield fields[1].partition(":")[0]


def test_the_token_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "home" / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    _protect_token(path)
    assert not path.exists()
    monkeypatch.delenv("RAY_AUTH_MODE")
    _protect_token(path)
    token = path.read_text()
    assert (len(token), mode_of(path), mode_of(path.parent)) == (64, 0o600, 0o700)
    path.chmod(0o644)
    path.parent.chmod(0o755)
    _protect_token(path)
    assert (path.read_text(), mode_of(path), mode_of(path.parent)) == (token, 0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


def test_the_folder_of_a_stopped_ray_is_removed(tmp_path: Path) -> None:
    for name in ("session_1", "session_2"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "logs" / "raylet.out").write_text("a log")
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_2")
    _remove_folder(tmp_path / "session_1")
    assert {path.name for path in tmp_path.iterdir()} == {"session_2", "session_latest"}
    _remove_folder(tmp_path / "session_2")
    assert list(tmp_path.iterdir()) == []
