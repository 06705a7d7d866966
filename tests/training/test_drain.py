"""A node that is about to go: all workers write a checkpoint, on a cluster of simulated nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.drawn import write_dataset
from tests.support.python_process import run_python

# In a process of its own: this one may be connected to another Ray.
SIMULATED = """
import json, os, subprocess, sys, threading, time
from ray.cluster_utils import Cluster
from cluster import session
from cluster.ray_settings import RaySettings
from training import run
from training.checkpoints.checkpoint import complete_checkpoints
from training.checkpoints.run_folder import run_folder
from training.data.plan import PlanSettings
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics

manifest, out = sys.argv[1:]
settings = TrainSettings(
    model=DiT(depth=1, dim=32, heads=2), steps=4000, batch=PlanSettings(tokens_per_step=100), warmup_steps=2,
    workers=2, zero_stage=1, checkpoint_every=4000, validate_every=0, trackers=(),
)
run_uri = run_folder(settings, manifest, out, 0)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
said = {"steps": []}

def drain(node):
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    deadline = ["--deadline-remaining-seconds", "600"]
    subprocess.run([*command, "--node-id", node.node_id, *reason, *deadline], check=True, capture_output=True)

def newest():
    return max((found.step for found in complete_checkpoints(run_uri)), default=0)

def drain_both():
    # The second worker is rank 1, on a node that shares its address with that of rank 0.
    try:
        while len(read_metrics(run_uri)) < 3:
            time.sleep(0.1)
        for node in nodes:
            before = newest()
            drain(node)
            while newest() == before:
                time.sleep(0.1)
            said["steps"].append(newest())
        while len(read_metrics(run_uri)) < newest() + 3:
            time.sleep(0.1)
    finally:
        os.kill(os.getpid(), 2)

threading.Thread(target=drain_both, daemon=True).start()
with session.ray_connection(RaySettings(address="auto")):
    try:
        run.train(settings, manifest, out)
    except run.Interrupted as error:
        said["ended"] = str(error)
with open(out + "/said.json", "w") as file:
    json.dump(said, file)
cluster.shutdown()
"""


@pytest.mark.slow
def test_workers_save_when_a_node_is_drained(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=0)
    run_python(SIMULATED, manifest, str(tmp_path), folder=tmp_path, timeout_s=400)
    said = json.loads((tmp_path / "said.json").read_text())
    first, second = said["steps"]
    assert said["ended"].startswith("stopped after step ")
    assert 0 < first < second < int(said["ended"].split()[3])
