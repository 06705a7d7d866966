"""The function that worker processes call first, and the size of the cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster.session import PACKAGES, worker_setup
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
    size = cluster_size()
    assert (size.cpus, size.may_grow) == (2, False)
