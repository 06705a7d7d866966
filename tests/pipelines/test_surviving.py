"""Curation on a simulated cluster of three nodes that loses one in `scan` and one in `encode` and gets two others, and
whose object store fills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine.table_index import index_table
from pipelines.ledger import ledger
from pipelines.recipe import Recipe
from tests.support.heavy_step import Heavy
from tests.support.python_process import run_python
from tests.support.toy_recipes import final_rows, logged_calls, toy_recipe, write_toys
from tests.support.toy_steps import Split

NAMES = [f"{letter}-2" for letter in "abcdefghij"]
PAYLOAD_BYTES = 8 << 20
"""Of a row: the clips of a task have more than what is left of a node's object store."""

# In a process of its own: this one may be connected to another Ray. Nodes can be added by the main thread alone.
SIMULATED = """
import json, os, re, sys, threading, time
from pathlib import Path
import ray
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from cluster import session
from cluster.nodes import living_nodes
from cluster.ray_settings import RaySettings
from pipelines import run
from pipelines.curation import run_segments
from pipelines.ledger import ledger
from tests.pipelines.test_surviving import recipe_of
from tests.support.toy_recipes import logged_calls

folder = Path(sys.argv[1])
store = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **store})
nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
said = {"failed": "", "done": {}}

def curate():
    try:
        curation = run_segments(recipe_of(folder, "out", 0.3), run)
        said["balanced"] = all(account.balanced for account in ledger(curation))
    except BaseException as error:
        said["failed"] = repr(error)

@ray.remote(num_cpus=0)
def fill():
    return bytes(64 << 20)

with session.ray_connection(RaySettings(address="auto")):
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in living_nodes()]
    filling = [fill.options(scheduling_strategy=strategy).remote() for strategy in there]
    ray.wait(filling, num_returns=len(filling))
    working = threading.Thread(target=curate)
    working.start()
    for step, n_done in (("scan", 2), ("encode", 4)):
        while len(set(logged_calls(folder / step))) < n_done and working.is_alive():
            time.sleep(0.1)
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        said["done"][step] = len(set(logged_calls(folder / step)))
        cluster.add_node(num_cpus=1, **store)
    working.join()
    found = re.search(r"Spilled (\\d+) MiB", memory_summary(cluster.address, stats_only=True))
    said["spilled_mb"] = int(found[1]) if found else 0
(folder / "said.json").write_text(json.dumps(said))
cluster.shutdown()
"""


def recipe_of(folder: Path, out: str, pause_s: float) -> Recipe:
    """Return a recipe of plain tasks, of clips, and of a pool of workers."""
    scan = Heavy(name="scan", calls=str(folder / "scan"), pause_s=pause_s, payload_bytes=PAYLOAD_BYTES)
    encode = Heavy(name="encode", calls=str(folder / "encode"), pause_s=pause_s, pooled=True)
    return toy_recipe(folder, [scan, Split(), encode], out)


@pytest.mark.slow
def test_lost_nodes_and_a_full_store_change_nothing(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    run_python(SIMULATED, str(tmp_path), folder=tmp_path, timeout_s=300)
    said = json.loads((tmp_path / "said.json").read_text())
    assert (said["failed"], said["balanced"]) == ("", True)
    assert said["done"]["scan"] < len(NAMES), "a node was lost in the middle of the step"
    assert said["done"]["encode"] < 2 * len(NAMES), "another was lost in the middle of the step"
    assert said["spilled_mb"] > 0
    assert len(set(logged_calls(tmp_path / "scan"))) == len(NAMES)
    curation = run_segments(recipe_of(tmp_path, "out", 0), inline)
    assert all(not index_table(state.folder, state.segment.input_column).n_doubled for state in curation.segments)
    assert final_rows(curation) == final_rows(run_segments(recipe_of(tmp_path, "inline", 0), inline))
    assert len(final_rows(curation)) == 2 * len(NAMES)
    assert all(account.balanced for account in ledger(curation))
