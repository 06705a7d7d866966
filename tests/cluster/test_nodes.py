"""Nodes of a cluster: what they have installed, and GPUs that come up late; simulated on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.nodes import VERSIONED, _faults, _looking
from tests.support.python_process import run_python

HERE = {"Python": "3.11", "worldloom": "0.1.0", "torch": "2.14.0+cpu"}


def test_versions_are_compared() -> None:
    assert list(_faults(HERE, HERE | {"torch": "2.14.0+cu130"})) == []
    there = {"Python": "3.12", "worldloom": "0.2.0", "package training": "/home/me/training/__init__.py"}
    python, ours, torch, hidden = _faults(HERE, there)
    assert python.startswith("Python is 3.12 there and 3.11 here; start Ray there with this Python")
    assert ours.startswith("worldloom is 0.2.0 there and 0.1.0 here; pip install worldloom==0.1.0 there")
    assert torch.startswith("torch is not installed there and 2.14.0+cpu here; pip install torch==2.14.0+cpu there")
    (lacking,) = _faults({"ray": "not installed"}, {"ray": "2.60.0"})
    assert lacking.startswith("ray is 2.60.0 there and not installed here; pip install ray==2.60.0 here")
    assert hidden.startswith("Python imports /home/me/training/__init__.py as the package training, which hides that")


def test_this_process_has_our_packages() -> None:
    assert list(_looking()()) == ["Python", *VERSIONED]


def test_a_package_in_place_of_ours_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("mine", ""), ("broken", "raise RuntimeError('of the user')")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("cluster.nodes.MODULES", ("mine.recipe", "broken.recipe", "cluster.storage"))
    found = _looking()()
    assert {name: value for name, value in found.items() if name.startswith("package")} == {
        f"package {name}": str(tmp_path / name / "__init__.py") for name in ("mine", "broken")
    }


# In a process of its own: this one may be connected to another Ray. The main thread is the autoscaler, which starts a
# node with a GPU when something waits for one, and then no more.
SIMULATED = """
import importlib.metadata, json, os, sys, threading, time
from ray.cluster_utils import Cluster
from ray.util import placement_group_table
from cluster import nodes, session
from cluster.ray_settings import RaySettings

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
said = {}

def attempt(name, function, *arguments):
    try:
        function(*arguments)
        said[name] = ""
    except RuntimeError as error:
        said[name] = str(error)

def pending_gpus():
    groups = [group for group in placement_group_table().values() if group["state"] == "PENDING"]
    return sum(bundle.get("GPU", 0) for group in groups for bundle in group["bundles"].values())

with session.ray_connection(RaySettings(address="auto")):
    attempt("same", nodes.check_nodes)
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "9.9" if name == "worldloom" else version(name)
    attempt("version", nodes.check_nodes)
    importlib.metadata.version = version
    waiting = threading.Thread(target=attempt, args=("gpu", nodes.wait_for_gpus, 1, 60))
    waiting.start()
    while not pending_gpus():
        time.sleep(0.1)
    said["asked"] = pending_gpus()
    cluster.add_node(num_cpus=1, num_gpus=1)
    waiting.join()
    attempt("late", nodes.wait_for_gpus, 2, 1.5)
    said["left"] = pending_gpus()
with open(sys.argv[1], "w") as file:
    json.dump(said, file)
cluster.shutdown()
"""


@pytest.mark.slow
def test_nodes_are_checked_and_gpus_waited_for(tmp_path: Path) -> None:
    answer = tmp_path / "said.json"
    run_python(SIMULATED, str(answer), folder=tmp_path, timeout_s=300)
    said = json.loads(answer.read_text())
    assert (said["same"], said["gpu"], said["asked"], said["left"]) == ("", "", 1, 0)
    faults = said["version"].splitlines()
    assert len(faults) == 2
    assert all("worldloom is 0.1.0 there and 9.9 here; pip install worldloom==9.9 there" in fault for fault in faults)
    assert all(fault.startswith("node ") for fault in faults)
    assert said["late"].startswith(
        "train.device: cuda: the cluster has 1 of 2 GPUs after 0 min; see why its autoscaler"
    )
