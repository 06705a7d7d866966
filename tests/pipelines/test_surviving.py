"""Curation on a simulated cluster of three nodes. Spot nodes come and go in `scan` and `encode` while the object store
fills; a row takes more memory than its worker may have; and the head node is lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import inline
from pipelines.curation import inspect, run_segments
from pipelines.engine.table_index import index_table
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from tests.support.heavy_step import Heavy
from tests.support.python_process import run_python
from tests.support.toy_recipes import final_rows, logged_calls, toy_recipe, write_toys
from tests.support.toy_steps import Split

NAMES = [f"{letter}-2" for letter in "abcdefghij"]
HUNGRY = ["a-2", "b-2", "hungry-2", "c-2"]
PAYLOAD_BYTES = 8 << 20
"""Of a row: the clips of a task have more than what is left of a node's object store."""

# In a process of its own: this one may be connected to another Ray. Nodes can be added by the main thread alone, and it
# is the main thread that the loss of the head node interrupts. Ray notices lost nodes faster than by default.
SIMULATED = """
import json, os, re, sys, threading, time
from pathlib import Path

os.environ |= {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
import ray
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from cluster import lost_workers, session
from cluster.nodes import living_nodes
from cluster.ray_settings import RaySettings
from pipelines import run
from pipelines.curation import run_segments
from pipelines.errors import explain
from tests.pipelines.test_surviving import hungry_recipe, recipe_of
from tests.support.toy_recipes import logged_calls

folder = Path(sys.argv[1])
store = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **store})
nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
said = {"failed": "", "done": [], "seconds": {}}
start_s = time.monotonic()

def took(name):
    global start_s
    said["seconds"][name], start_s = round(time.monotonic() - start_s), time.monotonic()

def curate():
    try:
        run_segments(recipe_of(folder, "out", 0.3), run)
    except BaseException as error:
        said["failed"] = repr(error)

@ray.remote(num_cpus=0)
def fill():
    return bytes(64 << 20)

def n_called(path):
    return len(set(logged_calls(path)))

def lose_the_head():
    while len(logged_calls(folder / "scan")) < n_scanned + 5:
        time.sleep(0.1)
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

took("start")
try:
    with session.ray_connection(RaySettings(address="auto")):
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in living_nodes()]
        filling = [fill.options(scheduling_strategy=strategy).remote() for strategy in there]
        ray.wait(filling, num_returns=len(filling))
        working = threading.Thread(target=curate)
        working.start()
        for step, n_done in (("scan", 2), ("scan", 6), ("encode", 4), ("encode", 12)):
            while n_called(folder / step) < n_done and working.is_alive():
                time.sleep(0.1)
            (folder / "hold").touch()
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
            said["done"].append((step, n_called(folder / step)))
            nodes.append(cluster.add_node(num_cpus=1, **store))
            (folder / "hold").unlink()
        working.join()
        found = re.search(r"Spilled (\\d+) MiB", memory_summary(cluster.address, stats_only=True))
        said["spilled_mb"] = int(found[1]) if found else 0
        del filling
        took("spot")
        lost_workers.NOTICE_S = 3.0
        run_segments(hungry_recipe(folder), run)
        took("memory")
        n_scanned = len(logged_calls(folder / "scan"))
        threading.Thread(target=lose_the_head, daemon=True).start()
        run_segments(recipe_of(folder, "headless", 1.0), run)
except RuntimeError as error:
    said["head"] = explain(error).text
took("head")
(folder / "said.json").write_text(json.dumps(said))
cluster.shutdown()
"""


def recipe_of(folder: Path, out: str, pause_s: float) -> Recipe:
    """Return a recipe of plain tasks, of clips, and of a pool of workers."""
    common = {"pause_s": pause_s, "hold": str(folder / "hold")}
    scan = Heavy(name="scan", calls=str(folder / "scan"), payload_bytes=PAYLOAD_BYTES, **common)
    encode = Heavy(name="encode", calls=str(folder / "encode"), pooled=True, **common)
    return toy_recipe(folder, [scan, Split(), encode], out)


def hungry_recipe(folder: Path) -> Recipe:
    """Return a recipe of four files, for one of which a library takes more memory than its process may have."""
    return toy_recipe(folder / "hungry", [Heavy(name="scan", calls=str(folder / "hungry" / "scan")), Split()])


@pytest.mark.slow
def test_lost_nodes_memory_and_a_lost_head(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    write_toys(tmp_path / "hungry", HUNGRY)
    run_python(SIMULATED, str(tmp_path), folder=tmp_path, timeout_s=600)
    said = json.loads((tmp_path / "said.json").read_text())
    print(said["seconds"])
    n_rows = {"scan": len(NAMES), "encode": 2 * len(NAMES)}
    assert said["failed"] == ""
    assert all(n_done < n_rows[step] for step, n_done in said["done"]), "nodes were lost in the middle of the steps"
    assert said["spilled_mb"] > 0
    assert said["head"].startswith("the Ray cluster lost its head node (")
    assert said["head"].endswith("start the cluster again and run the same command: finished work is kept")
    straight = final_rows(run_segments(recipe_of(tmp_path, "straight", 0), inline))
    assert len(straight) == n_rows["encode"]
    check_complete(recipe_of(tmp_path, "out", 0), straight)
    # What was done before the head node was lost is not done again.
    headless, before = recipe_of(tmp_path, "headless", 0), len(logged_calls(tmp_path / "scan"))
    state = inspect(headless)
    n_done = state.segments[0].n_done
    assert n_done > 0
    assert not state.complete
    check_complete(headless, straight)
    assert len(logged_calls(tmp_path / "scan")) == before + len(NAMES) - n_done

    hungry = inspect(hungry_recipe(tmp_path))
    fates = {Path(row["source"]).stem: (row["fate"], row["fate_reason"]) for row in final_rows(hungry)}
    assert fates.pop("hungry-2") == ("failed", "WorkerDied: the process that worked on this row died twice")
    assert set(fates.values()) == {("kept", None)}
    assert len(final_rows(hungry)) == 3 * 2 + 1
    assert all(account.balanced for account in ledger(hungry))


def check_complete(recipe: Recipe, straight: list[dict[str, Any]]) -> None:
    """Finish a curation in this process, and check that its rows are those of an undisturbed one, each once."""
    curation = run_segments(recipe, inline)
    assert all(not index_table(state.folder, state.segment.input_column).n_doubled for state in curation.segments)
    assert final_rows(curation) == straight
    assert all(account.balanced for account in ledger(curation))
