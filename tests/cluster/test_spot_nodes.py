"""Training on a cluster of simulated spot nodes: some are lost without a warning while others join, and then all that
are left say that they are about to go.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.drawn import write_dataset
from tests.support.python_process import run_python
from tests.support.ranks import run_ranks
from training import loop, run
from training.assembly import TrainingRun
from training.checkpoints.checkpoint import complete_checkpoints, newest_checkpoint
from training.checkpoints.model_card import read_card
from training.checkpoints.run_folder import run_folder
from training.checkpoints.schedule import SAVE_REQUESTED
from training.data.plan import PlanSettings
from training.loop import train_loop
from training.models.dit import DiT
from training.settings import TrainSettings
from training.tracking.metrics import read_metrics
from training.tracking.step_records import TakenStep

SETTINGS = TrainSettings(
    model=DiT(depth=1, dim=32, heads=2),
    steps=60,
    batch=PlanSettings(tokens_per_step=100),
    warmup_steps=2,
    workers=2,
    zero_stage=1,
    max_failures=1,
    checkpoint_every=10,
    keep_checkpoints=9,
    validate_every=0,
    trackers=(),
)
LOSSES = 3
"""Number of nodes that are lost."""
DRAINED_AT = (52, 55)
"""Steps before which the two last nodes are drained, after the others were lost. No checkpoint is due after them."""

# In a process of its own: this one may be connected to another Ray. Nodes can be added by the main thread alone. Ray
# notices lost nodes faster than by default, and waits longer for processes that start on busy cores.
SIMULATED = """
import json, os, sys, threading, time
from pathlib import Path

os.environ |= {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "6",
    "RAY_worker_register_timeout_seconds": "300",
}
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from cluster import session
from cluster.ray_settings import RaySettings
from tests.cluster.test_spot_nodes import DRAINED_AT, LOSSES, SETTINGS, drained, held_worker, newest_step
from training import run
from training.tracking.metrics import read_metrics

manifest, out = sys.argv[1:]
run_uri, folder = run.run_folder(SETTINGS, manifest, out, 0), Path(out)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
said = {"failed": "", "saved": [], "seconds": []}
start_s = time.monotonic()

def took(what):
    said["seconds"].append((what, round(time.monotonic() - start_s, 1)))

def train():
    try:
        run.train(SETTINGS, manifest, out)
    except BaseException as error:
        said["failed"] = repr(error)

def living_actors():
    actors = ray._private.state.actors().values()
    living = [actor["ActorClassName"] for actor in actors if actor["State"] != "DEAD"]
    return [name for name in living if name != "_AutoscalingCoordinatorActor"]  # of Ray Data, as long as the cluster

def wait_for(condition):
    while not condition() and working.is_alive():
        time.sleep(0.1)

with session.ray_connection(RaySettings(address="auto")):
    run._worker = held_worker
    working = threading.Thread(target=train)
    working.start()
    for _ in range(LOSSES):
        wait_for(lambda: newest_step(run_uri) > max(said["saved"], default=0))
        said["saved"].append(newest_step(run_uri))
        took("saved")
        nodes.append(cluster.add_node(num_cpus=1))
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        took("lost")
    (folder / "calm").touch()
    for node, step in zip(nodes, DRAINED_AT):
        wait_for(lambda: len(read_metrics(run_uri)) >= step)
        gcs = ray._private.worker.global_worker.gcs_client
        assert gcs.drain_node(node.node_id, DRAIN_NODE_REASON_PREEMPTION, "spot", int(1000 * (time.time() + 600)))[0]
        wait_for(drained(folder, step).exists)
        took("drained")
    working.join()
    took("trained")
    end_s = time.monotonic() + 30
    while (left := living_actors()) and time.monotonic() < end_s:
        time.sleep(0.1)
    said["left"] = left
(folder / "said.json").write_text(json.dumps(said))
cluster.shutdown()
"""


def newest_step(run_uri: str) -> int:
    """Return the step of the newest checkpoint, or 0 without one."""
    newest = newest_checkpoint(run_uri)
    return newest.step if newest else 0


def drained(folder: Path, step: int) -> Path:
    """Return the file that says that a worker knows that its node is drained before a step."""
    return folder / f"drained-{step}"


WORKER, TAKE_STEP = run._worker, loop.take_step


def held_worker(config: dict[str, Any]) -> None:
    """Run the loop of a rank, whose steps wait once there is a newer checkpoint, until a node is lost; and later, at
    some steps, until a node is drained.
    """
    run_uri = config["run_uri"]
    folder, start = Path(run_uri).parent, newest_step(run_uri)

    def held_step(run: TrainingRun, step: int, *arguments: Any) -> TakenStep:
        while newest_step(run_uri) > start and not (folder / "calm").exists():
            time.sleep(0.05)
        while step in DRAINED_AT and not drained(folder, step).exists():
            if SAVE_REQUESTED.is_set():
                drained(folder, step).touch()
            time.sleep(0.05)
        return TAKE_STEP(run, step, *arguments)

    loop.take_step = held_step  # type: ignore[assignment]
    run.DRAIN_POLL_S = 0.5
    WORKER(config)


def train_undisturbed(manifest: str, run_uri: str) -> None:
    """Train on ranks without Ray."""
    train_loop(SETTINGS, manifest, run_uri, 0, torch.device("cpu"))


@pytest.mark.slow
def test_spot_nodes_come_and_go(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", [(32, 32, 5, 6)], n_val=0)
    out, undisturbed = str(tmp_path / "out"), str(tmp_path / "undisturbed")
    (tmp_path / "out").mkdir()
    run_python(SIMULATED, manifest, out, folder=tmp_path, timeout_s=900)
    said = json.loads((tmp_path / "out" / "said.json").read_text())
    print(said)
    assert said["failed"] == ""
    run_ranks(train_undisturbed, 2, manifest, undisturbed)
    run_uri = run_folder(SETTINGS, manifest, out, 0)
    ours, theirs = read_metrics(run_uri), read_metrics(undisturbed)
    assert [record["step"] for record in ours] == list(range(1, SETTINGS.steps + 1))
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]
    assert read_card(f"{run_uri}/export").weights == read_card(f"{undisturbed}/export").weights
    saved = [checkpoint.step for checkpoint in complete_checkpoints(run_uri)]
    assert {step + 1 for step in DRAINED_AT} < set(saved)
    assert said["left"] == []
