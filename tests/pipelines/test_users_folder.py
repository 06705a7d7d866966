"""Commands that run in a folder with packages named as ours, on a cluster.

On a Ray that it starts, the killed run of `tests/test_end_to_end.py` runs in such a folder.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from tests.pipelines.commands.conftest import TRAINING
from tests.support.users_folder import worldloom_in, write_users_folder
from tests.support.videos import encode, sliding

CLUSTER = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
Path(sys.argv[1]).write_text(cluster.address)
sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster_of_two_nodes(folder: Path) -> Iterator[str]:
    """Yield the address of a cluster that another process holds, which runs in a folder."""
    address = folder / "address"
    command = [sys.executable, "-P", "-c", CLUSTER, str(address)]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        try:
            while not address.exists() or not address.read_text():
                assert holder.poll() is None
                time.sleep(0.1)
            yield address.read_text()
        finally:
            assert holder.stdin is not None
            holder.stdin.close()


def write_recipe(folder: Path) -> Path:
    """Write a recipe of one short video beside it."""
    encode(folder / "a.mp4", sliding(40, 1.0, 96, 64, seed=0), time_base=Fraction(1, 24))
    buckets = [{"size": 32, "frames": [9], "fps": 8, "aspects": ["1:1"]}]
    recipe = {
        "name": "users-folder",
        "out": "out",
        "ray": {"address": "auto"},
        "sources": [{"videos": "a.mp4"}],
        "curate": [
            {"scan": {}},
            {"cut": {}},
            {"caption": {"engine": "signals"}},
            {"encode": {"autoencoder": {"name": "linear"}, "buckets": buckets}},
        ],
        "splits": {"val": 0},
        "train": {**TRAINING, "workers": 1, "zero_stage": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
def test_packages_of_the_user_are_not_imported(tmp_path: Path) -> None:
    folder = write_users_folder(tmp_path / "user")
    recipe = write_recipe(folder)
    with cluster_of_two_nodes(folder) as address:
        ended = worldloom_in(folder, "run", str(recipe), RAY_ADDRESS=address)
    assert ended.returncode == 0, ended.stderr
    assert len(list((folder / "out").glob("run-*/export/model.safetensors"))) == 1


@pytest.mark.slow
def test_a_path_with_packages_of_the_user_is_no_obstacle(tmp_path: Path) -> None:
    ended = worldloom_in(write_users_folder(tmp_path / "user"), "schema")
    assert (ended.returncode, ended.stdout[:1]) == (0, "{"), ended.stderr
